"""Linear layers by `pallas_kernels.fused_linear`: what `gemm_backend="fused"` runs.

    y_i = a W_i^T + b_i + residual_i        a = act(x + x_bias) silu(gate + gate_bias)

Weights are rounded to compute_dtype for a whole block of the model in one launch, in front of it.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from pallas_kernels import fused_linear, round_weights


class Rounded(NamedTuple):
    """A weight, and its copy in compute_dtype that is multiplied with."""

    weight: Float[Array, "O D"]
    copy: Float[Array, "O D"]


def is_fused(gemm_backend: str, x: Float[Array, "*batch D"]) -> bool:
    """Whether the layers of x [..., L, D] are fused: one token is left to XLA, which reads weights where they are."""
    return gemm_backend == "fused" and x.ndim > 1 and x.shape[-2] > 1


def with_rounded_weights(layers: PyTree, compute_dtype) -> PyTree:
    """The layers, with `Rounded` weights in all that are linear unless theirs are of compute_dtype."""

    def weights(layers) -> list:
        linears = jax.tree.leaves(layers, is_leaf=_is_linear)
        return [linear.weight for linear in linears if _is_linear(linear)]

    found, dtype = weights(layers), jnp.dtype(compute_dtype)
    if all(weight.dtype == dtype for weight in found):
        return layers
    return eqx.tree_at(weights, layers, list(map(Rounded, found, round_weights(*found, dtype=dtype))))


def layers_of_one(
    x: Float[Array, "*batch D"],
    weights: Sequence[Float[Array, "_ D"] | Rounded],
    biases: Sequence[Float[Array, " _"] | None],
    residuals: Sequence[Float[Array, "*batch _"] | None] | None = None,
    *,
    x_bias: Float[Array, " D"] | None = None,
    activation: Literal["silu"] | None = None,
    gate: Float[Array, "*batch D"] | None = None,
    gate_bias: Float[Array, " D"] | None = None,
) -> tuple[Float[Array, "*batch _"], ...]:
    """The layers of one x, as one operation; x, gate and residuals in compute_dtype."""
    pairs = [weight if isinstance(weight, Rounded) else (weight, None) for weight in weights]
    behind = (None,) * len(pairs) if residuals is None else residuals
    ys = fused_linear(
        _tokens(x), tuple(weight for weight, _ in pairs), tuple(map(_wide, biases)),
        x_bias=_wide(x_bias), gate=_tokens(gate), gate_bias=_wide(gate_bias), activation=activation,
        residual=tuple(map(_tokens, behind)), rounded=tuple(copy for _, copy in pairs),
    )  # fmt: skip
    return tuple(y.reshape(*x.shape[:-1], y.shape[-1]) for y in ys)


def _is_linear(module) -> bool:
    return isinstance(module, eqx.nn.Linear)


def _tokens(array) -> Any:
    return None if array is None else array.reshape(-1, *array.shape[-2:])


def _wide(bias):
    return None if bias is None else bias.astype(jnp.float32)
