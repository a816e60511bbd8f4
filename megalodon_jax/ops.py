"""Matrix products under the dtype policy: operands in compute_dtype, sums in accum_dtype, result in compute_dtype.

    y = x W^T + b        dx = dy W        dW = dy^T x, rounded to nothing but the dtype of W        db = sum dy

A float32 product is a float32 product: the highest precision is asked for, so that Ampere and later GPUs do not use
TF32 behind the caller's back. A bfloat16 product has bfloat16 operands in the backward too, where JAX's own rule would
widen the cotangent and multiply in float32. "fused" is `pallas_kernels.fused_linear`, which sums in float32 whatever
accum_dtype is; "mxfp8" and "nvfp4" quantise both operands in blocks first (`megalodon_jax.low_precision`).
"""

from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from megalodon_jax.fused_layers import Rounded, is_fused, layers_of_one
from megalodon_jax.low_precision import FORMATS, product
from reference.gating import activated, gated


def matmul_3d_weight(
    x: Float[Array, "*batch D"],
    weight: Float[Array, "O D"] | Rounded,
    compute_dtype,
    accum_dtype,
    gemm_backend: str = "default",
) -> Float[Array, "*batch O"]:
    """x @ weight.T in compute_dtype, accumulated in accum_dtype (a bfloat16 product in float32, by XLA).

    A bfloat16 product differentiates once and in reverse.
    """
    x, compute, accum = x.astype(compute_dtype), jnp.dtype(compute_dtype), jnp.dtype(accum_dtype)
    if is_fused(gemm_backend, x):
        return layers_of_one(x, (weight,), (None,))[0]
    assert not isinstance(weight, Rounded)  # for "fused" alone
    if gemm_backend in FORMATS:
        y = jnp.asarray(product(x.reshape(-1, x.shape[-1]), weight.astype(compute), gemm_backend))
        return y.reshape(*x.shape[:-1], weight.shape[0]).astype(compute)
    if gemm_backend not in ("default", "fused"):
        raise ValueError(f"gemm_backend must be 'default', 'fused', 'mxfp8' or 'nvfp4', got {gemm_backend!r}")
    if compute == jnp.float32:
        return _product("...d,od->...o", x, weight.astype(compute), accum).astype(compute)
    rows = jnp.asarray(_rounded_product(x.reshape(-1, x.shape[-1]), weight, accum))
    return rows.reshape(*x.shape[:-1], weight.shape[0])


def linear_3d(
    linear: eqx.nn.Linear,
    x: Float[Array, "*batch D"],
    compute_dtype,
    accum_dtype,
    gemm_backend: str = "default",
    *,
    x_bias: Float[Array, " D"] | None = None,
    activation: Literal["silu"] | None = None,
    gate: Float[Array, "*batch D"] | None = None,
    gate_bias: Float[Array, " D"] | None = None,
    residual: Float[Array, "*batch O"] | None = None,
    number: int | None = None,
) -> Float[Array, "*batch O"]:
    """(act(x + x_bias) silu(gate + gate_bias)) @ weight.T + bias + residual in compute_dtype, without what is None;
    x_bias is for an activation alone.

    "fused" adds in float32 and rounds once; elsewhere the product is rounded, then its sum with the bias, then that
    with the residual. With a `number` the backward is kept apart from other products with the same cotangent.
    """
    if is_fused(gemm_backend, x):
        front = {"x_bias": x_bias, "activation": activation, "gate": gate, "gate_bias": gate_bias}
        return layers_of_one(x.astype(compute_dtype), (linear.weight,), (linear.bias,), (residual,), **front)[0]
    x = x if activation is None else activated(x, x_bias)
    x = x if gate is None else gated(x, gate, gate_bias)
    y = matmul_3d_weight(x, linear.weight, compute_dtype, accum_dtype, gemm_backend)
    y = y if number is None else apart(y, number)
    y = y if linear.bias is None else add_bias(y, linear.bias)
    return y if residual is None else residual + y


def add_bias(y: Float[Array, "*batch O"], bias: Float[Array, " O"]) -> Float[Array, "*batch O"]:
    """y + bias, added in float32, in the dtype of y."""
    return (y.astype(jnp.float32) + bias.astype(jnp.float32)).astype(y.dtype)


def apart(x: Float[Array, "*x"], number: int) -> Float[Array, "*x"]:
    """x, as an array of its own, which under another number is another; so is its cotangent.

    XLA merges products that share an operand, on a GPU, and then copies those parts of the result that a kernel reads.
    """
    return lax.optimization_barrier((x, jnp.float32(number)))[0]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded_product(x: Float[Array, "M D"], weight: Float[Array, "O D"], accum_dtype) -> Float[Array, "M O"]:
    """x @ weight.T in the dtype of x, which the weight is rounded to."""
    return _forward(x, weight, accum_dtype)[0]


def _forward(x, weight, accum_dtype):
    rounded = weight.astype(x.dtype)
    return _product("md,od->mo", x, rounded, x.dtype), (x, rounded, jnp.zeros((0,), weight.dtype))


def _backward(accum_dtype, saved, dy):
    x, rounded, like = saved
    dw = _product("mo,md->od", dy, x, jnp.float32).astype(like.dtype)
    return _product("mo,od->md", dy, rounded, x.dtype), dw


_rounded_product.defvjp(_forward, _backward)


def _product(which: str, a, b, dtype):
    return jnp.einsum(which, a, b, precision=lax.Precision.HIGHEST, preferred_element_type=dtype)
