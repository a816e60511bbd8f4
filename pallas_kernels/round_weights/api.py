"""Public entry of round_weights: contract, validation, implementations."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

import reference
from pallas_kernels import _checks as checks
from pallas_kernels._dispatch import Op, reference_implementation
from pallas_kernels._kernels import kernel_implementations
from pallas_kernels._settings import Implementation as ImplementationName
from pallas_kernels.round_weights import triton


def round_weights(
    *weights: Float[Array, "_ _"], dtype: Any = jnp.bfloat16, implementation: ImplementationName = None
) -> tuple[Float[Array, "_ _"], ...]:
    """Weights in the dtype that products take: what `fused_linear` wants as `rounded`, for several layers at once.

    XLA rounds each weight in a launch of its own where a kernel reads it.

    Args:
        weights: at least one matrix, float32 or bfloat16.
        dtype: float32 or bfloat16, or the name of one.
        implementation: None (best available), a name, or a tuple of names tried in order.

    Returns:
        One array for each, rounded to the nearest, ties to even. No gradient goes through them.

    Raises:
        ValueError: no weight, or one that is no matrix; unknown implementation.
        TypeError: wrong dtype (float16 is refused).
        KernelUnavailable: a named implementation cannot run.
    """
    return OP(*weights, dtype=dtype, implementation=implementation)


def _check(*weights, dtype=jnp.bfloat16):
    if not weights:
        raise ValueError("round_weights: give at least one weight.")
    for number, weight in enumerate(weights):
        checks.check_array("round_weights", f"weight {number}", weight, ("O", "D"), checks.ACTIVATIONS, {})
    try:
        known = jnp.dtype(dtype) in checks.ACTIVATIONS
    except TypeError:  # no dtype at all
        known = False
    if not known:
        raise TypeError(f"round_weights: dtype must be float32 or bfloat16, got {dtype!r}.")


_TRITON, _INTERPRET = kernel_implementations(triton.round_weights, triton.launches, triton.refuse, token_axis=None)
OP = Op("round_weights", _check, (_TRITON, reference_implementation(reference.round_weights), _INTERPRET))
