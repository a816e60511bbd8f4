"""Named problems of timestep_norm: what parity tests, lowering checks, compiled figures and benchmarks all run on."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from pallas_kernels._tiles import Tiles


@dataclass(frozen=True)
class Spec:
    """One problem.

    Attributes:
        data: "normal", "offset" (mean 1000, deviation 0.1), "constant", "drift" (50 deviations over the sequence),
            "outlier" (one token of 1e5 deviations).
        tiles: launch shape in place of the heuristic's, so that a short sequence has several tiles and chunks.
    """

    name: str
    batch: int
    length: int
    features: int
    groups: int
    dtype: DTypeLike = jnp.float32
    statistics: str = "token_mean"
    affine: bool = True
    mask: bool = False
    segments: bool = False
    state: bool = False
    data: str = "normal"
    tiles: Tiles | None = None

    def __str__(self) -> str:
        return self.name

    def arrays(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Abstract arguments by name: x, dy, and of weight, bias, mask, segment_ids, count, mean, var those it has."""
        B, L, D, G = self.batch, self.length, self.features, self.groups
        S, F = jax.ShapeDtypeStruct, jnp.float32
        found = {"x": S((B, L, D), self.dtype), "dy": S((B, L, D), self.dtype)}
        if self.affine:
            found |= {"weight": S((D,), F), "bias": S((D,), F)}
        if self.mask:
            found["mask"] = S((B, L), jnp.bool_)
        if self.segments:
            found["segment_ids"] = S((B, L), jnp.int32)
        if self.state:
            found |= {"count": S((B,), jnp.int32), "mean": S((B, G), F), "var": S((B, G), F)}
        return found


_ONE, _MANY = Tiles(16, 1, 4), Tiles(8, 5, 4)
_BF16 = jnp.bfloat16

# Small enough for the float64 oracle; between them every path of the kernels. Batches of 4: the error of a state's
# gradient is then that of some twenty numbers, not of one lucky one.
PARITY = (
    Spec("one token", 2, 1, 8, 4),
    Spec("plain", 4, 48, 16, 4, tiles=_ONE),
    Spec("ragged", 4, 45, 15, 5, state=True, tiles=_ONE),
    Spec("chunks", 4, 75, 12, 2, state=True, tiles=_MANY),
    Spec("all features", 4, 45, 15, 5, statistics="all_features", state=True, tiles=_ONE),
    Spec("all features, chunks", 4, 75, 12, 2, statistics="all_features", state=True, tiles=_MANY),
    Spec("not affine", 4, 45, 12, 12, affine=False, tiles=_ONE),
    Spec("masked", 4, 45, 12, 4, mask=True, state=True, tiles=_ONE),
    Spec("masked, chunks", 4, 75, 12, 4, mask=True, state=True, tiles=_MANY),
    Spec("masked, all features", 4, 45, 12, 4, mask=True, statistics="all_features", tiles=_ONE),
    Spec("packed", 4, 60, 12, 4, mask=True, segments=True, state=True, tiles=_ONE),
    Spec("packed, chunks", 4, 75, 10, 2, mask=True, segments=True, state=True, tiles=_MANY),
    Spec("packed, all features", 8, 60, 12, 4, segments=True, statistics="all_features", state=True, tiles=_ONE),
    Spec("packed, all features, chunks", 4, 75, 12, 4, segments=True, statistics="all_features", tiles=_MANY),
    Spec("bfloat16", 8, 70, 24, 2, dtype=_BF16, mask=True, state=True, tiles=_ONE),
    Spec("bfloat16, packed", 8, 70, 24, 2, dtype=_BF16, segments=True, state=True, tiles=_MANY),
    Spec("heuristic tiles", 1, 600, 96, 3),
    Spec("mean 1000, std 0.1", 1, 700, 32, 2, data="offset"),
    Spec("mean 1000, std 0.1, all features", 1, 700, 32, 2, data="offset", statistics="all_features"),
    Spec("constant", 1, 100, 8, 2, data="constant", state=True, tiles=_ONE),
    Spec("drift", 1, 2048, 8, 2, data="drift"),
    Spec("outlier", 2, 256, 64, 2, data="outlier"),
    Spec("outlier, chunks", 2, 256, 64, 2, data="outlier", tiles=_MANY),
    Spec("shipped bfloat16 tiles", 4, 520, 64, 2, dtype=_BF16, data="drift"),
    Spec("shipped bfloat16 tiles, packed", 2, 520, 64, 2, dtype=_BF16, mask=True, segments=True, state=True),
    Spec("wide group", 1, 20, 3000, 1),
)

# One figure for the length: too long for the interpreters' everyday run.
LONG = (
    Spec("64k tokens", 1, 65536, 4, 2, data="drift"),
    Spec("64k tokens, all features", 1, 65536, 4, 2, data="drift", statistics="all_features"),
)

HEADLINE = Spec("headline", 8, 4096, 1024, 32, dtype=_BF16)

# What models use; compiled, never run here.
PRESETS = (
    HEADLINE,
    Spec("headline, float32", 8, 4096, 1024, 32),
    Spec("headline, all features", 8, 4096, 1024, 32, dtype=_BF16, statistics="all_features"),
    Spec("headline, masked", 8, 4096, 1024, 32, dtype=_BF16, mask=True),
    Spec("headline, packed", 8, 4096, 1024, 32, dtype=_BF16, segments=True),
    Spec("headline, packed, all features, float32", 8, 4096, 1024, 32, segments=True, statistics="all_features"),
    Spec("one sequence", 1, 32768, 1024, 32, dtype=_BF16),
    Spec("1.3B", 8, 4096, 2048, 64, dtype=_BF16),
    Spec("7B", 8, 4096, 4096, 64, dtype=_BF16),
    Spec("7B, prefill", 1, 4096, 4096, 64, dtype=_BF16, state=True),
    Spec("7B, one token", 8, 1, 4096, 64, dtype=_BF16, state=True),
    Spec("one wide group", 8, 1024, 4096, 1, dtype=_BF16),
)
