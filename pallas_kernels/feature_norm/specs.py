"""Named problems of feature_norm: what parity tests, lowering checks, compiled figures and benchmarks run on."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from pallas_kernels._tiles import Tiles


@dataclass(frozen=True)
class Spec:
    """One problem.

    Attributes:
        features: of a token.
        weight, bias: with those parameters.
        tiles: launch shape of both kernels in place of the heuristic's.
    """

    name: str
    batch: int
    length: int
    features: int
    dtype: DTypeLike = jnp.float32
    centred: bool = True
    minus_one: bool = False
    weight: bool = True
    bias: bool = True
    tiles: Tiles | None = None

    def __str__(self) -> str:
        return self.name

    def arrays(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Abstract arguments by name: x, dy, and weight and bias if it has them."""
        x = jax.ShapeDtypeStruct((self.batch, self.length, self.features), self.dtype)
        parameter = jax.ShapeDtypeStruct((self.features,), jnp.float32)
        found = {"x": x, "dy": x}
        return found | {name: parameter for name in ("weight", "bias") if getattr(self, name)}


_ONE, _MANY = Tiles(16, 1, 4), Tiles(4, 5, 4)
_BF16 = jnp.bfloat16


_rms = partial(Spec, centred=False, minus_one=True, bias=False)  # as the model has it


# Small enough for the float64 oracle; between them every path of the kernels.
PARITY = (
    Spec("one token", 2, 1, 4),
    Spec("plain", 2, 64, 16, tiles=_ONE),
    Spec("ragged", 3, 45, 20, tiles=_ONE),
    Spec("chunks", 2, 75, 12, minus_one=True, tiles=_MANY),
    _rms("RMS", 2, 64, 16, tiles=_ONE),
    _rms("RMS, chunks", 2, 75, 20, tiles=_MANY),
    Spec("one feature", 2, 30, 1, tiles=_ONE),
    Spec("no parameters", 2, 45, 20, weight=False, bias=False, tiles=_MANY),
    Spec("no weight", 2, 45, 20, weight=False, tiles=_MANY),
    Spec("no bias", 2, 45, 20, bias=False, tiles=_MANY),
    _rms("RMS with a bias", 2, 45, 20, bias=True, tiles=_MANY),
    Spec("bfloat16", 2, 70, 24, dtype=_BF16, tiles=_MANY),
    _rms("RMS, bfloat16", 2, 70, 32, dtype=_BF16, tiles=_ONE),
    Spec("heuristic tiles", 1, 300, 320),
    _rms("heuristic bfloat16 tiles", 2, 300, 256, dtype=_BF16),
)

HEADLINE = Spec("headline", 8, 4096, 1024, dtype=_BF16)

# What models use; compiled, never run here.
PRESETS = (
    HEADLINE,
    _rms("headline, RMS", 8, 4096, 1024, dtype=_BF16),
    Spec("headline, float32", 8, 4096, 1024),
    _rms("headline, RMS, float32", 8, 4096, 1024),
    Spec("model S", 8, 2048, 512, dtype=_BF16),
    _rms("model S, RMS", 8, 2048, 512, dtype=_BF16),
    Spec("model S, float32", 8, 2048, 512),
    Spec("1B", 4, 4096, 2048, dtype=_BF16),
    Spec("1B, float32", 4, 4096, 2048),
    Spec("7B", 2, 8192, 4096, dtype=_BF16),
    _rms("7B, RMS", 2, 8192, 4096, dtype=_BF16),
    Spec("7B, float32", 2, 8192, 4096),
    Spec("widest", 2, 4096, 8192, dtype=_BF16),
    Spec("widest, float32", 2, 4096, 8192),
    Spec("no power of two", 4, 4096, 1536, dtype=_BF16),
)
