"""Matrix products under the dtype policy: operands in compute_dtype, sums in accum_dtype, result in compute_dtype.

A float32 product is a float32 product: the highest precision is asked for, so that Ampere and later GPUs do not use
TF32 behind the caller's back. The backends "mxfp8" and "nvfp4" quantise both operands in blocks first
(`megalodon_jax.low_precision`).
"""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from megalodon_jax.low_precision import FORMATS, product


def matmul_3d_weight(
    x: Float[Array, "*batch D"],
    weight: Float[Array, "O D"],
    compute_dtype,
    accum_dtype,
    gemm_backend: str = "default",
) -> Float[Array, "*batch O"]:
    """x @ weight.T in compute_dtype, accumulated in accum_dtype."""
    return _product(x, weight, compute_dtype, accum_dtype, gemm_backend).astype(compute_dtype)


def linear_3d(
    linear: eqx.nn.Linear,
    x: Float[Array, "*batch D"],
    compute_dtype,
    accum_dtype,
    gemm_backend: str = "default",
) -> Float[Array, "*batch O"]:
    """x @ weight.T + bias in compute_dtype; the bias is added before the sum is rounded."""
    y = _product(x, linear.weight, compute_dtype, accum_dtype, gemm_backend)
    if linear.bias is not None:
        y = y + linear.bias.astype(compute_dtype).astype(y.dtype)
    return y.astype(compute_dtype)


def _product(x, weight, compute_dtype, accum_dtype, gemm_backend):
    x, weight = x.astype(compute_dtype), weight.astype(compute_dtype)
    if gemm_backend in FORMATS:
        y = jnp.asarray(product(x.reshape(-1, x.shape[-1]), weight, gemm_backend))
        return y.reshape(*x.shape[:-1], -1).astype(accum_dtype)
    if gemm_backend != "default":
        raise ValueError(f"gemm_backend must be 'default', 'mxfp8' or 'nvfp4', got {gemm_backend!r}")
    return jnp.einsum(
        "...d,od->...o", x, weight, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.dtype(accum_dtype)
    )
