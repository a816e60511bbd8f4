"""Copies of several matrices in another dtype, pure jnp."""

from typing import Any

from jax import lax
from jaxtyping import Array, Float


def round_weights(*weights: Float[Array, "_ _"], dtype: Any) -> tuple[Float[Array, "_ _"], ...]:
    """Reference round_weights; arguments, shapes and meaning as in `pallas_kernels.round_weights`."""
    return tuple(lax.stop_gradient(weight).astype(dtype) for weight in weights)
