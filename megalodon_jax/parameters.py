"""Parameters by name. Names are attribute paths: "model.layers.0.attn.wz.weight"; megalodon-hf uses the same."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax

Model = TypeVar("Model", bound=eqx.Module)


def named_parameters(model: eqx.Module) -> dict[str, jax.Array]:
    """Every array leaf by name, in pytree order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(model, eqx.is_array))
    return {_name(path): leaf for path, leaf in leaves}


def map_parameters(function: Callable[[str, jax.Array], Any], model: Model) -> Model:
    """The model with every array leaf replaced by `function(name, leaf)`."""
    replace = lambda path, leaf: function(_name(path), leaf) if eqx.is_array(leaf) else leaf  # noqa: E731
    return jax.tree_util.tree_map_with_path(replace, model)


def _name(path) -> str:
    parts = (str(getattr(entry, "name", getattr(entry, "idx", entry))) for entry in path)
    return ".".join(parts)
