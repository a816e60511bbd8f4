"""Parameters that stay float32 whatever the rest of the model uses.

EMA parameters, the gains and biases of every norm, and the per-head query/key affine maps.
"""

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from megalodon_jax.language_model import LanguageModel
from megalodon_jax.parameters import map_parameters, named_parameters

Model = TypeVar("Model", bound=eqx.Module)
Language = TypeVar("Language", bound=LanguageModel)

_SENSITIVE_MODULES = ("cema", "timenorm", "rmsnorm")
_SENSITIVE_PATHS = ("attn.gamma", "attn.beta", "ffn.norm.weight", "ffn.norm.bias", "ffn.rescale")


def is_sensitive(name: str) -> bool:
    """Is this parameter name (as in `named_parameters`) one that must stay float32?"""
    name = name.removeprefix("model.")
    return (
        name in ("norm.weight", "norm.bias")
        or name.endswith(_SENSITIVE_PATHS)
        or any(f".{module}." in name for module in _SENSITIVE_MODULES)
    )


def audit_sensitive_param_dtypes(model: eqx.Module, *, expected_dtype=jnp.float32) -> dict[str, jnp.dtype]:
    """Sensitive parameters whose dtype is not `expected_dtype`, by name without the `model.` prefix."""
    return {
        name.removeprefix("model."): a.dtype
        for name, a in named_parameters(model).items()
        if is_sensitive(name) and a.dtype != expected_dtype
    }


def ensure_sensitive_param_dtype(model: Model, *, dtype=jnp.float32) -> Model:
    """The model with every sensitive parameter cast to `dtype`, everything else as it was."""
    cast = lambda name, a: a.astype(dtype) if is_sensitive(name) else a  # noqa: E731
    return map_parameters(cast, model)


def cast_weights(model: Language) -> Language:
    """The model with those weights in compute_dtype that every call casts to it anyway: for a loop of many calls.

    They are those of linear layers and, unless `scale_emb` multiplies it before the cast, of the embedding; biases are
    added in float32. Outputs stay the same, bit for bit.
    """
    scaled = getattr(model.config, "scale_emb", False)
    kinds = eqx.nn.Linear if scaled else (eqx.nn.Linear, eqx.nn.Embedding)
    is_cast = lambda node: isinstance(node, kinds)  # noqa: E731
    dtype = model.config.compute_dtype

    def cast(node):
        return eqx.tree_at(lambda layer: layer.weight, node, node.weight.astype(dtype)) if is_cast(node) else node

    return jax.tree.map(cast, model, is_leaf=is_cast)
