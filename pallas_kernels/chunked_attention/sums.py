"""A sum over tiles that stays in memory: the rows [T, F] of a program's own tokens in an array [B, L, H, F], float32.

No other program reads or writes them. Every addition is followed by a barrier, so that each thread of the program sees
what the others have written, whichever of them comes to read an element next.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from pallas_kernels._backends.triton import load, store
from pallas_kernels._tiles import next_power_of_two
from pallas_kernels.chunked_attention.problem import SMALLEST, Cursor, Dot, Operand

SLICE = 64  # features that the registers hold at a time


class Sum:
    """Starts at 0. `exists` says which of the program's tokens there are, None for all of them."""

    def __init__(self, ref, at: Cursor, exists, barrier: Callable[[], None]):
        self.ref, self.at, self.exists, self.barrier = ref, at, exists, barrier
        self.width = ref.shape[3]
        self.size = min(SLICE, max(SMALLEST, next_power_of_two(self.width)))
        self._each(lambda number: jnp.zeros((at.block, self.size), jnp.float32), ref)

    def add(self, dot: Dot, a, b: Operand) -> None:
        """Add a b; the slices of `b` are those of the sum."""
        self._each(lambda number: self._load(number) + dot(a, b.slice(number)), self.ref)

    def write(self, ref) -> None:
        """Round it into another array."""
        self._each(self._load, ref)

    def _load(self, number):
        return load(self.ref, *self._index(number))

    def _each(self, value, ref) -> None:
        def one(number, carry):
            index, mask = self._index(number)
            store(ref, index, value(number), mask)
            return carry

        lax.fori_loop(0, -(-self.width // self.size), one, jnp.int32(0))
        self.barrier()

    def _index(self, number):
        columns = number * self.size + jnp.arange(self.size, dtype=jnp.int32)
        return self.at.index(self.at.tokens, columns, self.width, self.exists)
