"""Named problems of normalized_rotary: what parity tests, lowering checks, compiled figures and benchmarks run on."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from pallas_kernels._tiles import Tiles


@dataclass(frozen=True)
class Spec:
    """One problem.

    Attributes:
        depth: head dim.
        bias: with that of the projection.
        offset: of the scale.
        factor: of both.
        rows: positions differ from row to row.
        tiles: launch shape of both kernels in place of the heuristic's.
    """

    name: str
    batch: int
    length: int
    heads: int
    depth: int
    dtype: DTypeLike = jnp.float32
    interleaved: bool = False
    rows: bool = False
    bias: bool = False
    offset: float = 0.0
    factor: float = 1.0
    tiles: Tiles | None = None

    def __str__(self) -> str:
        return self.name

    def arrays(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Abstract arguments by name: z, scale, shift, positions, dq, dk, and bias if it has one."""
        S, z = jax.ShapeDtypeStruct, jax.ShapeDtypeStruct((self.batch, self.length, self.heads, self.depth), self.dtype)
        parameter = S((2, self.heads, self.depth), jnp.float32)
        positions = S((self.batch, self.length) if self.rows else (self.length,), jnp.int32)
        found = {"z": z, "scale": parameter, "shift": parameter, "positions": positions, "dq": z, "dk": z}
        return found | ({"bias": S(parameter.shape[1:], jnp.float32)} if self.bias else {})


_ONE, _MANY = Tiles(16, 1, 4), Tiles(4, 5, 4)
_BF16 = jnp.bfloat16

# Small enough for the float64 oracle; between them every path of the kernels.
PARITY = (
    Spec("one token", 2, 1, 1, 4),
    Spec("plain", 2, 64, 2, 16, tiles=_ONE),
    Spec("ragged", 3, 45, 2, 20, tiles=_ONE),
    Spec("chunks", 2, 75, 3, 12, rows=True, tiles=_MANY),
    Spec("interleaved", 2, 45, 2, 20, interleaved=True, rows=True, tiles=_MANY),
    Spec("interleaved, one program", 2, 64, 1, 16, interleaved=True, tiles=_ONE),
    Spec("two features", 2, 30, 1, 2, tiles=_ONE),
    Spec("bias", 2, 45, 2, 20, bias=True, tiles=_MANY),
    Spec("bias, bfloat16", 2, 70, 1, 32, dtype=_BF16, interleaved=True, bias=True, tiles=_ONE),
    Spec("offset and factor", 2, 45, 2, 20, offset=1.0, factor=0.3, tiles=_MANY),
    Spec("offset and factor, bfloat16", 2, 70, 1, 32, dtype=_BF16, bias=True, offset=-0.5, factor=-2.0, tiles=_ONE),
    Spec("bfloat16", 2, 70, 2, 24, dtype=_BF16, tiles=_MANY),
    Spec("bfloat16, interleaved", 2, 70, 1, 32, dtype=_BF16, interleaved=True, tiles=_ONE),
    Spec("heuristic tiles", 1, 300, 1, 256),
    Spec("heuristic bfloat16 tiles", 2, 300, 1, 256, dtype=_BF16),
)

HEADLINE = Spec("headline", 8, 4096, 1, 256, dtype=_BF16)

# What models use; compiled, never run here.
PRESETS = (
    HEADLINE,
    Spec("headline, interleaved", 8, 4096, 1, 256, dtype=_BF16, interleaved=True),
    Spec("headline, bias", 8, 4096, 1, 256, dtype=_BF16, bias=True, offset=1.0, factor=1 / 16),
    Spec("headline, packed", 8, 4096, 1, 256, dtype=_BF16, rows=True),
    Spec("headline, float32", 8, 4096, 1, 256),
    Spec("7B", 2, 8192, 4, 256, dtype=_BF16),
)
