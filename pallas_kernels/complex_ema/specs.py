"""Named problems of complex_ema: what parity tests, lowering checks, compiled figures and benchmarks all run on."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from pallas_kernels._tiles import Tiles


@dataclass(frozen=True)
class Spec:
    """One problem.

    Attributes:
        h0: a state comes in.
        returned: the state is returned, and takes a cotangent.
        decays: "usual" (|q| up to 0.999, any phase), "long" (|q| = 0.99999), "rounded" (the same, with phases that
            suffer most from the rounding of (Im q)^2) or "edges" (each feature another hard case: real, nearly real,
            negative, zero, nearly one; p = 0, gamma = 0).
        tiles: launch shape of both kernels in place of the heuristic's, so that a short sequence has several chunks.
    """

    name: str
    batch: int
    length: int
    features: int
    states: int
    dtype: DTypeLike = jnp.float32
    omega: bool = True
    mask: bool = False
    segments: bool = False
    h0: bool = False
    returned: bool = False
    decays: str = "usual"
    tiles: Tiles | None = None

    def __str__(self) -> str:
        return self.name

    def arrays(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Abstract arguments by name: x, p, q, gamma, dy, and of omega, mask, segment_ids, h0, dh those it has."""
        B, L, D, N = self.batch, self.length, self.features, self.states
        S, F, C = jax.ShapeDtypeStruct, jnp.float32, jnp.complex64
        found = {"x": S((B, L, D), self.dtype), "p": S((D, N), F), "q": S((D, N), C), "gamma": S((D, N), C)}
        found["dy"] = S((B, L, D), self.dtype)
        if self.omega:
            found["omega"] = S((D,), F)
        if self.mask:
            found["mask"] = S((B, L), jnp.bool_)
        if self.segments:
            found["segment_ids"] = S((B, L), jnp.int32)
        if self.h0:
            found["h0"] = S((B, D, N), C)
        if self.returned:
            found["dh"] = S((B, D, N), C)
        return found


_ONE, _MANY = Tiles(4, 1, 1), Tiles(4, 3, 1)
_BF16 = jnp.bfloat16

# Small enough for the float64 oracle; between them every path of the kernels.
PARITY = (
    Spec("one step", 2, 1, 4, 2, h0=True, returned=True),
    Spec("plain", 2, 96, 5, 2, tiles=_ONE),
    Spec("ragged", 2, 101, 5, 3, tiles=_ONE),
    Spec("chunks", 2, 170, 40, 2, tiles=_MANY),
    Spec("chunks, state", 2, 170, 5, 2, h0=True, returned=True, tiles=_MANY),
    Spec("state in", 2, 70, 5, 2, h0=True, omega=False, tiles=_ONE),
    Spec("state out", 2, 70, 5, 2, returned=True, tiles=_MANY),
    Spec("one state", 2, 70, 32, 1, omega=False, tiles=_ONE),
    Spec("masked", 2, 101, 5, 2, mask=True, tiles=_ONE),
    Spec("masked, chunks", 2, 170, 5, 2, mask=True, h0=True, returned=True, tiles=_MANY),
    Spec("packed", 2, 101, 5, 2, segments=True, tiles=_ONE),
    Spec("packed, chunks", 2, 170, 5, 2, segments=True, tiles=_MANY),
    Spec("packed, chunks, state", 3, 170, 5, 2, mask=True, segments=True, h0=True, returned=True, tiles=_MANY),
    Spec("bfloat16", 2, 170, 33, 4, dtype=_BF16, tiles=_MANY),
    Spec("bfloat16, packed", 2, 170, 5, 2, dtype=_BF16, mask=True, segments=True, h0=True, tiles=_MANY),
    Spec("heuristic tiles", 1, 300, 64, 2),
    Spec("sixteen states", 1, 70, 8, 16, tiles=_ONE),
    Spec("edges", 2, 150, 8, 2, decays="edges", tiles=_MANY),
    Spec("edges, state, short chunks", 2, 150, 10, 2, decays="edges", h0=True, returned=True, tiles=Tiles(4, 5, 1)),
    Spec("edges, state out", 2, 150, 10, 2, decays="edges", returned=True, tiles=_MANY),
    Spec("edges, packed", 2, 150, 10, 2, decays="edges", segments=True, h0=True, tiles=_MANY),
    Spec("long memory", 1, 2013, 16, 2, decays="long"),
    Spec("longest chunks", 2, 1280, 32, 2, h0=True, returned=True),
    Spec("longest chunks, bfloat16", 2, 1280, 32, 2, dtype=_BF16, h0=True, returned=True, tiles=Tiles(4, 5, 1)),
)

# Too long for every day.
LONG = (
    Spec("64k steps", 1, 65536, 16, 2, decays="long"),
    Spec("64k steps, packed", 1, 65536, 16, 2, decays="long", segments=True),
)

# The policy is broken here, by how much a test says: rounding along chunks as long as the heuristic's, of 64 steps,
# with an incoming state and |q| = 0.99999; and states that turn away between two corrections as far as they can.
SHORTFALLS = (
    Spec("edges, state", 2, 150, 10, 2, decays="edges", h0=True, returned=True, tiles=_MANY),
    Spec("rounded decays", 2, 250, 5, 2, decays="rounded", h0=True, returned=True),
)

HEADLINE = Spec("headline", 8, 4096, 1024, 16, dtype=_BF16)

# What models use; compiled, never run here.
PRESETS = (
    HEADLINE,
    Spec("headline, float32", 8, 4096, 1024, 16),
    Spec("headline, masked", 8, 4096, 1024, 16, dtype=_BF16, mask=True),
    Spec("headline, packed", 8, 4096, 1024, 16, dtype=_BF16, segments=True),
    Spec("headline, state", 8, 4096, 1024, 16, dtype=_BF16, h0=True, returned=True),
    Spec("one sequence", 1, 32768, 1024, 16, dtype=_BF16),
    Spec("7B", 8, 4096, 4096, 16, dtype=_BF16),
    Spec("7B, one token", 8, 1, 4096, 16, dtype=_BF16, h0=True, returned=True),
    Spec("32 states", 8, 4096, 1024, 32, dtype=_BF16),
)
