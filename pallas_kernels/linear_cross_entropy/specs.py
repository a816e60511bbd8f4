"""Named problems of linear_cross_entropy: for parity tests, lowering checks, compiled figures and benchmarks."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from pallas_kernels._tiles import LinearTiles


@dataclass(frozen=True)
class Spec:
    """One problem.

    Attributes:
        length, features, vocabulary: tokens, numbers of each, words.
        so_far: with a gradient of the weight to add to.
        size: of the logits.
        tiles: launch shape of all kernels in place of the heuristic's, so that a small problem has several blocks.
    """

    name: str
    length: int
    features: int
    vocabulary: int
    dtype: DTypeLike = jnp.float32
    so_far: bool = False
    size: float = 3.0
    tiles: LinearTiles | None = None

    def __str__(self) -> str:
        return self.name

    def arrays(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Abstract arguments by name: hidden, weight, targets, factors, and so_far if it has it."""
        S = jax.ShapeDtypeStruct
        found = {
            "hidden": S((self.length, self.features), self.dtype),
            "weight": S((self.vocabulary, self.features), self.dtype),
            "targets": S((self.length,), jnp.int32),
            "factors": S((self.length,), jnp.float32),
        }
        return found | ({"so_far": S((self.vocabulary, self.features), jnp.float32)} if self.so_far else {})


_SQUARE, _TALL, _WIDE = LinearTiles(16, 16, 16, 4, 1), LinearTiles(32, 16, 16, 4, 1), LinearTiles(16, 32, 16, 4, 1)
_DEEP = LinearTiles(16, 16, 32, 4, 1)  # tiles of the gradients have words of two blocks
_BF16 = jnp.bfloat16

# Small enough for the float64 oracle; between them every path of the kernels. Of larger logits than these one
# token near a tie decides the error: its gradient is as wrong as the float32 difference of two of them.
PARITY = (
    Spec("one token", 1, 3, 2, so_far=True),
    Spec("whole blocks", 32, 32, 64, tiles=_SQUARE),
    Spec("whole blocks, so far", 64, 32, 96, so_far=True, tiles=_TALL),
    Spec("wide blocks", 48, 64, 64, tiles=_WIDE),
    Spec("words of two blocks", 64, 32, 96, tiles=_DEEP),
    Spec("ragged", 37, 35, 77, so_far=True, tiles=_SQUARE),
    Spec("ragged, tall", 50, 40, 45, tiles=_TALL),
    Spec("ragged, words of two blocks", 37, 20, 77, so_far=True, tiles=_DEEP),
    Spec("large logits", 32, 32, 64, size=30.0, tiles=_SQUARE),
    Spec("bfloat16", 64, 48, 64, dtype=_BF16, tiles=_WIDE),
    Spec("bfloat16, ragged", 37, 35, 77, dtype=_BF16, so_far=True, tiles=_SQUARE),
    Spec("bfloat16, small logits", 64, 48, 90, dtype=_BF16, size=0.1, tiles=_TALL),
    Spec("heuristic tiles", 70, 40, 150, so_far=True),
    Spec("heuristic bfloat16 tiles", 140, 70, 300, dtype=_BF16, so_far=True),
)

# A chunk of tokens and the head of a model of 512 features; compiled, never run here.
PRESETS = (
    Spec("512 to 32000", 4096, 512, 32000, dtype=_BF16, so_far=True),
    Spec("512 to 32000, 2048 tokens", 2048, 512, 32000, dtype=_BF16, so_far=True),
    Spec("1024 to 32000, alone", 4096, 1024, 32000, dtype=_BF16),
    Spec("512 to 32000, float32", 4096, 512, 32000, so_far=True),
    Spec("500 to 31999, ragged", 4001, 500, 31999, dtype=_BF16, so_far=True),
)
