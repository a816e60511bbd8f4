"""Named problems of fused_linear: what parity tests, lowering checks, compiled figures and benchmarks run on."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from pallas_kernels._tiles import LinearTiles
from pallas_kernels.fused_linear.math import Activation


@dataclass(frozen=True)
class Spec:
    """One problem.

    Attributes:
        features, outputs: sizes of the rows of x and of the result.
        weight_dtype: float32, or that of x.
        x_bias, bias, residual: with them.
        tiles: launch shape of all kernels in place of the heuristic's, so that a small problem has several blocks.
    """

    name: str
    batch: int
    length: int
    features: int
    outputs: int
    dtype: DTypeLike = jnp.float32
    weight_dtype: DTypeLike = jnp.float32
    activation: Activation = None
    x_bias: bool = False
    bias: bool = False
    residual: bool = False
    tiles: LinearTiles | None = None

    def __str__(self) -> str:
        return self.name

    def arrays(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Abstract arguments by name: x, weight, dy, and of bias, x_bias and residual those it has."""
        S, y = jax.ShapeDtypeStruct, jax.ShapeDtypeStruct((self.batch, self.length, self.outputs), self.dtype)
        found = {
            "x": S((self.batch, self.length, self.features), self.dtype),
            "weight": S((self.outputs, self.features), self.weight_dtype),
            "dy": y,
        }
        if self.bias:
            found["bias"] = S((self.outputs,), jnp.float32)
        if self.x_bias:
            found["x_bias"] = S((self.features,), jnp.float32)
        return found | ({"residual": y} if self.residual else {})


_SQUARE, _TALL = LinearTiles(16, 16, 16, 4, 1), LinearTiles(32, 16, 16, 4, 1, num_splits=3)
_WIDE = LinearTiles(16, 32, 32, 4, 1, num_splits=2)
_BF16, _ALL = jnp.bfloat16, {"activation": "silu", "x_bias": True, "bias": True, "residual": True}

# Small enough for the float64 oracle; between them every path of the kernels.
PARITY = (
    Spec("one token", 1, 1, 3, 2, **_ALL),
    Spec("plain", 2, 32, 32, 48, tiles=_SQUARE),
    Spec("bias", 2, 32, 32, 48, bias=True, tiles=_TALL),
    Spec("silu", 2, 32, 32, 48, activation="silu", tiles=_SQUARE),
    Spec("biases, no activation", 2, 24, 40, 24, x_bias=True, bias=True, tiles=_WIDE),
    Spec("residual", 2, 24, 40, 24, residual=True, tiles=_WIDE),
    Spec("everything", 2, 48, 32, 64, **_ALL, tiles=_TALL),
    Spec("ragged", 3, 29, 37, 21, **_ALL, tiles=_SQUARE),
    Spec("ragged, split", 3, 37, 50, 35, **_ALL, tiles=_TALL),
    Spec("ragged, wide", 1, 77, 70, 45, **_ALL, tiles=_WIDE),
    Spec("bfloat16 weight, float32 rows", 2, 33, 40, 50, weight_dtype=_BF16, **_ALL, tiles=_SQUARE),
    Spec("bfloat16", 2, 40, 48, 32, dtype=_BF16, tiles=_TALL),
    Spec("bfloat16, everything", 2, 45, 70, 37, dtype=_BF16, **_ALL, tiles=_SQUARE),
    Spec("bfloat16 weight", 2, 33, 40, 50, dtype=_BF16, weight_dtype=_BF16, **_ALL, tiles=_WIDE),
    Spec("heuristic tiles", 1, 150, 70, 130, **_ALL),
    Spec("heuristic bfloat16 tiles", 1, 150, 140, 130, dtype=_BF16, **_ALL),
)

# The layers of a model of 512 features; compiled, never run here.
PRESETS = (
    Spec("512 to 2048", 8, 2048, 512, 2048, dtype=_BF16, bias=True),
    Spec("512 to 2560", 8, 2048, 512, 2560, dtype=_BF16, bias=True),
    Spec("2560 to 512", 8, 2048, 2560, 512, dtype=_BF16, **_ALL),
    Spec("2048 to 512", 8, 2048, 2048, 512, dtype=_BF16, bias=True, residual=True),
    Spec("2560 to 512, float32", 8, 2048, 2560, 512, **_ALL),
    Spec("2560 to 512, ragged", 7, 2001, 2500, 500, dtype=_BF16, **_ALL),
)
