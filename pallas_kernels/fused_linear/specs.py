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
        features: size of the rows of x.
        outputs: sizes of the rows of the result, one for each layer that shares x.
        weight_dtype: float32, or that of x.
        x_bias, bias, residual: with them.
        gate: with it and, unless `gate_bias` is False, its bias.
        rounded: with copies of the weights in `dtype`, made by round_weights, which are multiplied with.
        tiles: launch shape of all kernels in place of the heuristic's, so that a small problem has several blocks.
    """

    name: str
    batch: int
    length: int
    features: int
    outputs: int | tuple[int, ...]
    dtype: DTypeLike = jnp.float32
    weight_dtype: DTypeLike = jnp.float32
    activation: Activation = None
    x_bias: bool = False
    bias: bool = False
    residual: bool = False
    gate: bool = False
    gate_bias: bool = True
    rounded: bool = False
    tiles: LinearTiles | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def layers(self) -> tuple[int, ...]:
        """Outputs of each layer."""
        return self.outputs if isinstance(self.outputs, tuple) else (self.outputs,)

    def arrays(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Abstract arguments by name: x, of x_bias, gate and gate_bias those it has; then, with the number of the layer
        behind the name, weight, dy, and of bias and residual those it has.
        """
        S, x = jax.ShapeDtypeStruct, jax.ShapeDtypeStruct((self.batch, self.length, self.features), self.dtype)
        of_features = S((self.features,), jnp.float32)
        found = {"x": x} | ({"x_bias": of_features} if self.x_bias else {})
        found |= {"gate": x} if self.gate else {}
        found |= {"gate_bias": of_features} if self.gate and self.gate_bias else {}
        for number, outputs in enumerate(self.layers):
            y = S((self.batch, self.length, outputs), self.dtype)
            layer = {"weight": S((outputs, self.features), self.weight_dtype), "dy": y}
            layer |= {"bias": S((outputs,), jnp.float32)} if self.bias else {}
            layer |= {"residual": y} if self.residual else {}
            found |= {f"{name}_{number}": array for name, array in layer.items()}
        return found


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
    Spec("gate", 2, 24, 40, 24, x_bias=True, bias=True, gate=True, tiles=_TALL),
    Spec("gate alone", 2, 29, 37, 21, gate=True, gate_bias=False, tiles=_SQUARE),
    Spec("gate, bias behind", 2, 24, 40, 24, bias=True, gate=True, tiles=_WIDE),
    Spec("gate and silu, no bias", 2, 29, 37, 21, activation="silu", gate=True, gate_bias=False, tiles=_TALL),
    Spec("gate, rounded weights", 2, 45, 70, 37, dtype=_BF16, bias=True, gate=True, rounded=True, tiles=_SQUARE),
    Spec("several layers, rounded weights", 2, 45, 70, (37, 16), dtype=_BF16, **_ALL, rounded=True, tiles=_TALL),
    Spec("several layers", 2, 33, 40, (24, 5, 50), bias=True, residual=True, tiles=_TALL),
    Spec("several layers, everything", 2, 29, 37, (21, 40), **_ALL, gate=True, tiles=_SQUARE),
    Spec("several layers, bfloat16", 2, 45, 70, (37, 16), dtype=_BF16, **_ALL, gate=True, tiles=_WIDE),
    Spec("ragged, split", 3, 37, 50, 35, **_ALL, tiles=_TALL),
    Spec("ragged, wide", 1, 77, 70, 45, **_ALL, tiles=_WIDE),
    Spec("bfloat16 weight, float32 rows", 2, 33, 40, 50, weight_dtype=_BF16, **_ALL, tiles=_SQUARE),
    Spec("bfloat16", 2, 40, 48, 32, dtype=_BF16, tiles=_TALL),
    Spec("bfloat16, everything", 2, 45, 70, 37, dtype=_BF16, **_ALL, tiles=_SQUARE),
    Spec("bfloat16 weight", 2, 33, 40, 50, dtype=_BF16, weight_dtype=_BF16, **_ALL, tiles=_WIDE),
    Spec("heuristic tiles", 1, 150, 70, 130, **_ALL),
    Spec("heuristic bfloat16 tiles", 1, 150, 140, 130, dtype=_BF16, **_ALL),
)

# The layers of a model of 512 features, and the largest of a 7B one; compiled, never run here.
PRESETS = (
    Spec("512 to 2048", 8, 2048, 512, 2048, dtype=_BF16, bias=True),
    Spec("512 to 2560", 8, 2048, 512, 2560, dtype=_BF16, bias=True),
    Spec("2560 to 512", 8, 2048, 2560, 512, dtype=_BF16, **_ALL),
    Spec("2048 to 512", 8, 2048, 2048, 512, dtype=_BF16, bias=True, residual=True),
    Spec("2560 to 512, float32", 8, 2048, 2560, 512, **_ALL),
    Spec("512 to 256, 2048 and 512", 8, 2048, 512, (256, 2048, 512), dtype=_BF16, bias=True, residual=True),
    Spec("2048 to 512, gate", 8, 2048, 2048, 512, dtype=_BF16, bias=True, residual=True, gate=True),
    Spec("2560 to 512, ragged", 7, 2001, 2500, 500, dtype=_BF16, **_ALL),
    Spec("7B", 2, 8192, 11264, 4096, dtype=_BF16, **_ALL),
)
