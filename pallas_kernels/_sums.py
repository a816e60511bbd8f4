"""What the programs of a kernel have summed over their own tokens, added up: several sums in one launch."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32


def over_programs(*parts: Float32[Array, "C ..."] | None, axes: tuple[int, ...] = (0, 1)) -> tuple[Any, ...]:
    """The sum over these axes, those of programs, of each of some arrays of one shape; None stays None.

    They are reduced side by side: of as many sums by themselves XLA makes as many launches, and of one sum over one
    array that holds them all another launch for every part that is cut out.
    """
    present = tuple(part for part in parts if part is not None)
    if not present:
        return parts
    zeros = (jnp.float32(0.0),) * len(present)
    add = lambda left, right: tuple(map(jnp.add, left, right))  # noqa: E731
    found = iter(lax.reduce(present, zeros, add, axes))
    return tuple(None if part is None else next(found) for part in parts)
