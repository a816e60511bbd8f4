"""Named problems of chunked_attention: what parity tests, lowering checks, compiled figures and benchmarks run on."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from pallas_kernels._tiles import AttentionTiles


@dataclass(frozen=True)
class Spec:
    """One problem.

    Attributes:
        depth: head dim of q and k.
        width: head dim of v.
        activated: values are made of v and its bias.
        gated: and there is a gate with its bias.
        cached: room for so many keys from before; how many there are differs from row to row.
        scale: standard deviation of the queries: with a large one softmax picks single keys.
        tiles: launch shape of all kernels in place of the heuristic's, so that a short sequence has several blocks.
    """

    name: str
    batch: int
    length: int
    heads: int
    depth: int
    width: int
    chunk: int
    dtype: DTypeLike = jnp.float32
    mask: bool = False
    segments: bool = False
    cached: int | None = None
    activated: bool = False
    gated: bool = False
    scale: float = 0.5
    tiles: AttentionTiles | None = None

    def __str__(self) -> str:
        return self.name

    def arrays(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Abstract arguments by name: q, k, v, do, and of mask, segment_ids, gate and cache those it has."""
        S, (B, L, H) = jax.ShapeDtypeStruct, (self.batch, self.length, self.heads)
        narrow, wide = S((B, L, H, self.depth), self.dtype), S((B, L, H, self.width), self.dtype)
        found = {"q": narrow, "k": narrow, "v": wide, "do": wide}
        if self.mask:
            found["mask"] = S((B, L), jnp.bool_)
        if self.segments:
            found["segment_ids"] = S((B, L), jnp.int32)
        if self.activated or self.gated:
            found["v_bias"] = S((H, self.width), jnp.float32)
        if self.gated:
            found |= {"gate": wide, "gate_bias": found["v_bias"]}
        if self.cached:
            found["cached_k"] = S((B, self.cached, H, self.depth), self.dtype)
            found["cached_v"] = S((B, self.cached, H, self.width), self.dtype)
            found["cached_length"] = S((B,), jnp.int32)
        return found


_SQUARE, _TALL = AttentionTiles(16, 16, 16, 16, 4, 1), AttentionTiles(32, 16, 32, 32, 4, 1)
_WIDE = AttentionTiles(16, 32, 16, 32, 4, 1)
_BF16 = jnp.bfloat16

# Small enough for the float64 oracle; between them every path of the kernels.
PARITY = (
    Spec("one token", 2, 1, 1, 4, 4, 8),
    Spec("plain", 2, 64, 1, 16, 32, 32, tiles=_SQUARE),
    Spec("ragged", 2, 61, 2, 20, 40, 32, tiles=_SQUARE),
    Spec("off the grid", 2, 61, 2, 20, 40, 24, tiles=_TALL),
    Spec("tiny chunks", 2, 61, 1, 20, 40, 7, tiles=_WIDE),
    Spec("one chunk", 2, 75, 1, 32, 70, 100, tiles=_TALL),
    Spec("wider blocks of keys", 1, 96, 3, 16, 16, 32, tiles=_WIDE),
    Spec("masked", 3, 61, 2, 20, 40, 24, mask=True, tiles=_SQUARE),
    Spec("masked, on the grid", 2, 64, 1, 16, 32, 32, mask=True, tiles=_TALL),
    Spec("packed", 3, 90, 2, 20, 40, 8, segments=True, tiles=_SQUARE),
    Spec("packed, long chunks", 2, 90, 1, 16, 32, 64, segments=True, tiles=_TALL),
    Spec("packed, masked", 3, 90, 1, 20, 24, 16, mask=True, segments=True, tiles=_WIDE),
    Spec("continued", 5, 61, 2, 20, 40, 24, cached=24, tiles=_TALL),
    Spec("continued by one token", 4, 1, 2, 20, 40, 24, cached=24, tiles=_SQUARE),
    Spec("continued, masked", 5, 61, 1, 16, 32, 32, mask=True, cached=32, tiles=_WIDE),
    Spec("continued, packed", 5, 90, 2, 20, 40, 32, segments=True, cached=20, tiles=_SQUARE),
    Spec("continued, bfloat16", 4, 77, 1, 24, 40, 40, dtype=_BF16, cached=64, tiles=_TALL),
    Spec("continued, heuristic tiles", 3, 5, 1, 64, 160, 128, cached=128),
    Spec("bfloat16", 2, 77, 2, 32, 48, 40, dtype=_BF16, tiles=_TALL),
    Spec("bfloat16, packed", 2, 90, 1, 24, 40, 16, dtype=_BF16, mask=True, segments=True, tiles=_SQUARE),
    Spec("activated", 2, 61, 2, 20, 40, 24, activated=True, tiles=_SQUARE),
    Spec("gated", 2, 61, 2, 20, 40, 24, gated=True, tiles=_SQUARE),
    Spec("gated, masked", 3, 61, 2, 20, 40, 24, mask=True, gated=True, tiles=_TALL),
    Spec("gated, packed", 2, 90, 1, 20, 40, 16, segments=True, gated=True, tiles=_SQUARE),
    Spec("gated, continued", 5, 61, 2, 20, 40, 24, cached=24, gated=True, tiles=_TALL),
    Spec("gated, long chunks", 1, 77, 1, 16, 40, 1024, gated=True, tiles=_TALL),
    Spec("gated, bfloat16", 2, 77, 2, 32, 48, 40, dtype=_BF16, gated=True, tiles=_TALL),
    Spec("large scores", 2, 64, 1, 32, 32, 64, scale=8.0, tiles=_SQUARE),
    Spec("heuristic tiles", 1, 150, 1, 64, 160, 128),
    Spec("heuristic bfloat16 tiles", 1, 150, 1, 64, 160, 128, dtype=_BF16),
)

HEADLINE = Spec("headline", 8, 4096, 1, 256, 2048, 2048, dtype=_BF16)

# What models use; compiled, never run here.
PRESETS = (
    HEADLINE,
    Spec("headline, gated", 8, 4096, 1, 256, 2048, 2048, dtype=_BF16, gated=True),
    Spec("chunks of 256, activated", 8, 2048, 1, 256, 2048, 256, dtype=_BF16, activated=True),
    Spec("chunks of 256, gated", 8, 2048, 1, 256, 2048, 256, dtype=_BF16, gated=True),
    Spec("headline, float32", 8, 4096, 1, 256, 2048, 2048),
    Spec("headline, masked", 8, 4096, 1, 256, 2048, 2048, dtype=_BF16, mask=True),
    Spec("headline, packed", 8, 4096, 1, 256, 2048, 2048, dtype=_BF16, segments=True),
    Spec("headline, ragged", 8, 4001, 1, 256, 2048, 2048, dtype=_BF16),
    Spec("chunks of 2000", 8, 4096, 1, 256, 2048, 2000, dtype=_BF16),
    Spec("headline, continued", 8, 4096, 1, 256, 2048, 2048, dtype=_BF16, cached=2048),
    Spec("headline, continued by 5", 8, 5, 1, 256, 2048, 2048, dtype=_BF16, cached=2048),
    Spec("1.3B", 8, 4096, 2, 256, 2048, 2048, dtype=_BF16),
    Spec("7B", 2, 8192, 4, 256, 2048, 4096, dtype=_BF16),
    Spec("8 layers, dim 512", 8, 2048, 1, 128, 1024, 1024, dtype=_BF16),
    Spec("head dims 32, 256", 8, 2048, 8, 32, 256, 2048, dtype=_BF16),
    Spec("head dims 192, 1000", 8, 2048, 1, 192, 1000, 1024, dtype=_BF16),
)
