"""What is static about one call of chunked_attention, and how a program finds its tiles."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

from pallas_kernels._backends.triton import load, pl

SMALLEST = 16  # rows and columns of a matrix product
Dot = Callable[[jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Problem:
    """Sizes and options of a call: `depth` is the head dim of q and k, `width` that of v."""

    batch: int
    length: int
    heads: int
    depth: int
    width: int
    chunk_size: int
    activated: bool  # values are made of v by SiLU
    precision: str | None


class Arrays(NamedTuple):
    """The arguments that have gradients."""

    q: Float[Array, "B L H K"]
    k: Float[Array, "B L H K"]
    v: Float[Array, "B L H V"]
    cached_k: Float[Array, "B S H K"] | None = None
    cached_v: Float[Array, "B S H V"] | None = None
    gate: Float[Array, "B L H V"] | None = None
    v_bias: Float32[Array, "H V"] | None = None
    gate_bias: Float32[Array, "H V"] | None = None


class Tokens(NamedTuple):
    """Which pairs of tokens count; every field is None where the grid of chunks says it all.

    Attributes:
        valid: 1 for keys that count.
        first: first token of the chunk that each token is in (packed documents).
        end: the token after the last one of that chunk.
        cached_length: how many cached keys each row has.
        reach: the token after the last one of the chunk that those belong to.
    """

    valid: Int32[Array, "B L"] | None = None
    first: Int32[Array, "B L"] | None = None
    end: Int32[Array, "B L"] | None = None
    cached_length: Int32[Array, " B"] | None = None
    reach: Int32[Array, " B"] | None = None


class Cursor:
    """Where the program at hand is: grid (slices of values, blocks of tokens, batch x heads).

    `block` is the number of tokens of its own. With `last_first` the late blocks, which attend most, come first.
    """

    def __init__(self, problem: Problem, block: int, *, last_first: bool = False):
        self.problem, self.block = problem, block
        self.slice = pl.program_id(0)
        number = pl.program_id(1)
        self.number = pl.num_programs(1) - 1 - number if last_first else number
        self.row, self.head = pl.program_id(2) // problem.heads, pl.program_id(2) % problem.heads
        self.start = self.number * block
        self.tokens = self.start + jnp.arange(block, dtype=jnp.int32)

    @property
    def last(self):
        """Its last token that exists."""
        return jnp.minimum(self.start + self.block, self.problem.length) - 1

    def exists(self, tokens):
        """Which of a block of tokens there are; None for all of them."""
        return None if self.problem.length % tokens.shape[0] == 0 else tokens < self.problem.length

    def each(self, ref, tokens):
        """[T] of a [B, L] array, 0 where there is no token."""
        return load(ref, (self.row, tokens), self.exists(tokens))

    def statistic(self, ref, tokens):
        """[T] of a [B, H, L] array."""
        return load(ref, (self.row, self.head, tokens), self.exists(tokens))

    def chunk_of(self, tokens, marks: Tokens):
        """First token of the chunk of each token, or of a single one."""
        if marks.first is None:
            return tokens // self.problem.chunk_size * self.problem.chunk_size
        return self.each(marks.first, tokens) if tokens.ndim else load(marks.first, (self.row, tokens))

    def end_of(self, token, marks: Tokens):
        """The token after the last one of the chunk of a single token."""
        if marks.end is not None:
            return load(marks.end, (self.row, token))
        chunk = self.problem.chunk_size
        return jnp.minimum((token // chunk + 1) * chunk, self.problem.length)

    def columns(self, size: int):
        """Features of this program's slice of values."""
        return self.slice * size + jnp.arange(size, dtype=jnp.int32)

    def bias(self, ref, columns):
        """[S] of a [H, V] array, 0 for None."""
        if ref is None:
            return jnp.zeros(columns.shape, jnp.float32)
        return load(ref, (self.head, columns), self.inside(columns))

    def inside(self, columns):
        """Which of a slice of values there are; None for all of them."""
        return None if self.problem.width % columns.shape[0] == 0 else columns < self.problem.width

    def index(self, tokens, columns, width: int, counts):
        """Index of [T, S] in a [B, L, H, F] array of F = width features, and its mask; `counts` [T] or None."""
        shape = (tokens.shape[0], columns.shape[0])
        inside = None if width % columns.shape[0] == 0 else columns < width
        masks = [
            jnp.broadcast_to(mask[expand], shape)
            for mask, expand in ((counts, (slice(None), None)), (inside, (None, slice(None))))
            if mask is not None
        ]
        index = (self.row, jnp.broadcast_to(tokens[:, None], shape), self.head, jnp.broadcast_to(columns[None], shape))
        return index, (masks[0] & masks[-1] if masks else None)


class Operand:
    """Rows of an array [B, L, H, F], of which products over the features are taken, slice by slice.

    `counts` says which rows are to be read, the others are 0; None for all of them.
    """

    def __init__(self, ref, at: Cursor, tokens, size: int, counts):
        self.ref, self.at, self.tokens, self.size, self.counts = ref, at, tokens, size, counts
        self.width = ref.shape[3]
        self.slices = -(-self.width // size)
        self.kept = None

    def keep(self) -> "Operand":
        """Load now what is used again and again, if it is a single slice."""
        self.kept = self.slice(0) if self.slices == 1 else None
        return self

    def slice(self, number):
        """[T, size]."""
        if self.kept is not None:
            return self.kept
        columns = number * self.size + jnp.arange(self.size, dtype=jnp.int32)
        return load(self.ref, *self.at.index(self.tokens, columns, self.width, self.counts))


def contract(dot: Dot, a: Operand, b: Operand):
    """a b^T [Ta, Tb], over all features."""
    if a.slices == 1:
        return dot(a.slice(0), b.slice(0).T)
    start = jnp.zeros((a.tokens.shape[0], b.tokens.shape[0]), jnp.float32)
    return lax.fori_loop(0, a.slices, lambda number, sum: sum + dot(a.slice(number), b.slice(number).T), start)
