"""Weight initialisation.

    gaussian   truncated normal at 3 standard deviations, std 1/sqrt(dim), dim = fan-in unless given
    he         truncated normal, std sqrt(2 / fan-in)
    xavier     uniform in +-sqrt(6 / (fan-in + fan-out))
    bert       normal, std 0.02
    kaiming    normal, std 1/sqrt(3 fan-in); embedding and head as gaussian: what the CUDA release calls "he"
    none       keep the layer library's own initial values

Weights are (out, in): the fan-in is the last axis. Low-precision weights are drawn in float32 and rounded once.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

Initializer = Callable[..., jax.Array]
Module = TypeVar("Module")


def get_initializer(mode: str, dim: int | None = None) -> Initializer:
    """`(key, shape, dtype) -> weight` for an init mode; `dim` overrides the fan-in of "gaussian".

    Raises:
        ValueError: "none", which skips initialisation, or an unknown mode.
    """
    if mode == "none":
        raise ValueError("init mode 'none' skips reinitialization and has no initializer")
    if mode not in ("gaussian", "xavier", "he", "bert", "kaiming"):
        raise ValueError(f"Unknown init mode: {mode!r}; expected gaussian, xavier, he, bert, kaiming or none")

    def initialize(key, shape, dtype=jnp.float32):
        if mode == "gaussian":
            draw = jax.random.truncated_normal(key, -3.0, 3.0, shape) / math.sqrt(dim or shape[-1])
        elif mode == "he":
            draw = jax.nn.initializers.he_normal(in_axis=-1, out_axis=-2)(key, shape, jnp.float32)
        elif mode == "xavier":
            draw = jax.nn.initializers.glorot_uniform(in_axis=-1, out_axis=-2)(key, shape, jnp.float32)
        else:
            draw = (0.02 if mode == "bert" else 1 / math.sqrt(3 * shape[-1])) * jax.random.normal(key, shape)
        return draw.astype(dtype)

    return initialize


def vocabulary_mode(mode: str) -> str:
    """The init mode of the embedding and of the head in a model whose other layers have this one."""
    return "gaussian" if mode == "kaiming" else mode


def reinit_linear_weights(module: Module, mode: str, key: jax.Array, dim: int | None = None) -> Module:
    """Redraw the weight of every `eqx.nn.Linear` in `module` and set its bias to zero; "none" changes nothing.

    One key per layer, in pytree order.
    """
    if mode == "none":
        return module
    initialize = get_initializer(mode, dim)
    is_linear = lambda node: isinstance(node, eqx.nn.Linear)  # noqa: E731
    nodes, structure = jax.tree.flatten(module, is_leaf=is_linear)
    count = sum(map(is_linear, nodes))
    if count == 0:
        return module
    keys = iter(jax.random.split(key, count))

    def redraw(linear):
        weight = initialize(next(keys), linear.weight.shape, linear.weight.dtype)
        bias = None if linear.bias is None else jnp.zeros_like(linear.bias)
        return eqx.tree_at(lambda m: (m.weight, m.bias), linear, (weight, bias), is_leaf=lambda m: m is None)

    return jax.tree.unflatten(structure, [redraw(node) if is_linear(node) else node for node in nodes])
