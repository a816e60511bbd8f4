"""Rotary position embedding.

(z[i], z[i + d/2]), or interleaved (z[2 i], z[2 i + 1]), is rotated by the angle  position * base^(-2 i / d),
i = 0 .. d/2 - 1
"""

from functools import partial

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from reference.normalized_rotary import inv_freq, rotate


class RotaryEmbedding(eqx.Module):
    """Rotates queries and keys; the frequencies are derived from `dim` and `base`, not parameters.

    Raises:
        ValueError: odd `dim`.
    """

    dim: int = eqx.field(static=True)
    base: float = eqx.field(static=True)
    interleaved: bool = eqx.field(static=True)

    def __init__(self, dim: int, base: float = 10000.0, interleaved: bool = False, *, key=None):
        if dim % 2:
            raise ValueError(f"RotaryEmbedding expects even head dimension, got {dim}")
        self.dim, self.base, self.interleaved = dim, base, interleaved

    @property
    def inv_freq(self) -> np.ndarray:
        """[dim / 2] float32."""
        return inv_freq(self.dim, self.base).astype(np.float32)

    def __call__(
        self, q: Float[Array, "B L H K"], k: Float[Array, "B L H K"], start_index: Int[Array, ""] | int
    ) -> tuple[Float[Array, "B L H K"], Float[Array, "B L H K"]]:
        """Rotate by the positions start_index, start_index + 1, ..."""
        positions = jnp.asarray(start_index, jnp.int32) + jnp.arange(q.shape[1], dtype=jnp.int32)
        return self.rotate(q, k, positions)

    def rotate(
        self, q: Float[Array, "B L H K"], k: Float[Array, "B L H K"], positions: Int[Array, "*B L"]
    ) -> tuple[Float[Array, "B L H K"], Float[Array, "B L H K"]]:
        """Rotate by given positions, shared by the batch or one row each; computed in float32, cast back."""
        turn = partial(rotate, positions=positions, base=self.base, interleaved=self.interleaved)
        return turn(q), turn(k)
