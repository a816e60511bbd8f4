r"""Matrix products of block-scaled low-precision numbers: x @ w.T with both operands quantised along the contraction.

    mxfp8   blocks of 32, elements e4m3 (at most 448), a scale e8m0 = 2^ceil(log2(amax / 448)) for each block
    nvfp4   blocks of 16, elements e2m1 (at most 6), a scale e4m3 = amax / 6 / g for each block, and a float32
            g = amax / (6 448) for each row, which brings the scales into the range of e4m3

    y  = Q(x) Q(w)^T            dx = Q(dy) Q(w^T)^T            dw = Q(dy^T) Q(x^T)^T

    y[i, j] = a_g[i] b_g[j]  sum over k of  a[i, k] a_scale[i, k / block]  b[j, k] b_scale[j, k / block]

A row is quantised by what is in it and nothing else: a token's numbers depend neither on later tokens nor on the rest
of the batch, and a stream may be cut anywhere. (NVIDIA's recipe has one g for the tensor, which loses this.)
Scales are rounded so that no element overflows (e8m0) or by at most 2^-4 (e4m3: elements are cut off at 6). Every
operand is quantised anew along the axis that is summed over, from what was given, so that nothing is rounded twice.
Sums are float32. Where no instruction multiplies block-scaled numbers XLA emulates: elements times scales, which is
exact in bfloat16, then a product of bfloat16 matrices; such hardware gains nothing.

Formats: OCP Microscaling 1.0; NVIDIA, "Pretraining Large Language Models with NVFP4".
"""

import re
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32


@dataclass(frozen=True)
class Format:
    """Block size, element dtype and its largest number, scale dtype."""

    block: int
    element: jnp.dtype
    largest: float
    scale: jnp.dtype


FORMATS = {
    "mxfp8": Format(32, jnp.dtype(jnp.float8_e4m3fn), 448.0, jnp.dtype(jnp.float8_e8m0fnu)),
    "nvfp4": Format(16, jnp.dtype(jnp.float4_e2m1fn), 6.0, jnp.dtype(jnp.float8_e4m3fn)),
}
_BLACKWELL = 10.0  # compute capability
_LARGEST_SCALE = 448.0  # of e4m3
_EXPONENTS = (-126, 127)  # of e8m0, but for the smallest, which is no normal float32


def support(platform: str, compute_capability: str = "") -> str:
    """Has a device (`jax.Device` has both attributes) instructions for such products, or are they emulated?"""
    if platform not in ("gpu", "cuda") or not re.fullmatch(r"\d+\.\d+", compute_capability):
        return f"emulated: {platform} has no instructions for block-scaled numbers"
    if float(compute_capability) < _BLACKWELL:
        return (
            f"emulated: compute capability {compute_capability} has no instructions for them, {_BLACKWELL} and later do"
        )
    return "the hardware has instructions; whether they are used is for XLA to choose, and no run has shown it yet"


def quantize(x: Float[Array, "M K"], name: str) -> tuple[Array, Array, Float32[Array, " M"]]:
    """Elements [M, K'], scales [M, K' / block] and the scale of each row, whose product is about x.

    K' is K, filled up with zeros to whole blocks, and to one if there is none.
    """
    form = FORMATS[name]
    count = max(1, -(-x.shape[1] // form.block))
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, count * form.block - x.shape[1])))
    blocks = x.reshape(x.shape[0], count, form.block)
    largest = jnp.max(jnp.abs(blocks), axis=-1)
    if name == "mxfp8":
        whole, ratio = jnp.ones(x.shape[0], jnp.float32), largest / form.largest
        mantissa, exponent = jnp.frexp(ratio)
        exponent = jnp.where(mantissa == 0.5, exponent - 1, exponent)
        scale = jnp.ldexp(jnp.float32(1.0), jnp.where(ratio > 0, jnp.clip(exponent, *_EXPONENTS), 0))
        scale = jnp.where(jnp.isfinite(largest), scale, jnp.nan)
    else:
        whole = jnp.max(largest, axis=-1) / (form.largest * _LARGEST_SCALE)
        whole = jnp.where(whole > 0, whole, 1.0)
        scale = (largest / (form.largest * whole[:, None])).astype(form.scale).astype(jnp.float32)
    divisor = (scale * whole[:, None])[..., None]
    elements = jnp.where(divisor > 0, blocks / jnp.where(divisor > 0, divisor, 1.0), 0.0)
    elements = jnp.clip(elements, -form.largest, form.largest).astype(form.element)
    return elements.reshape(x.shape), scale.astype(form.scale), whole


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: Float[Array, "M K"], w: Float[Array, "O K"], name: str) -> Float32[Array, "M O"]:
    """x @ w.T of quantised operands; so are the products of its gradients, which come in the dtypes of x and w."""
    (a, a_scale, a_whole), (b, b_scale, b_whole) = quantize(x, name), quantize(w, name)
    y = lax.scaled_dot(a, b.T, lhs_scale=a_scale, rhs_scale=b_scale.T, preferred_element_type=jnp.float32)
    return y * a_whole[:, None] * b_whole


def _forward(x, w, name):
    return product(x, w, name), (x, w)


def _backward(name, saved, dy):
    x, w = saved
    dx, dw = jnp.asarray(product(dy, w.T, name)), jnp.asarray(product(dy.T, x.T, name))
    return dx.astype(x.dtype), dw.astype(w.dtype)


product.defvjp(_forward, _backward)
