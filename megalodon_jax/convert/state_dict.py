"""The state dict of megalodon-hf. Its names are ours, and no tensor is transposed.

    name there                                         here
    every name of `named_parameters`                   the same
    lm_head.weight of a tied model                     no leaf: must equal model.embed.weight
    model.layers.{i}.attn.inner.rope.inv_freq          no leaf: must be the frequencies of config.rope_base

Sensitive parameters (`megalodon_jax.precision`) are float32 on both sides, whatever the rest is.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.convert.loading import EMBEDDING, HEAD, InMemory, load_tensors, rotary_tables
from megalodon_jax.convert.tensors import as_dtype, as_torch, cast
from megalodon_jax.files import Pending
from megalodon_jax.model import MegalodonForCausalLM
from megalodon_jax.parameters import named_parameters
from megalodon_jax.precision import is_sensitive

if TYPE_CHECKING:
    import torch

StateDict = dict[str, Any]  # tensors of torch, or arrays, by name


def exported(model: MegalodonForCausalLM, dtype: Any = None, include_rope_inv_freq: bool = False) -> dict[str, Pending]:
    """The tensors of a model under megalodon-hf's names, each made when it is asked for.

    Raises:
        ValueError: a model that megalodon-hf does not have, or an unsuitable dtype.
    """
    if model.config.variant != "hf":
        raise ValueError(
            f"megalodon-hf has no models of variant={model.config.variant!r}; "
            "use convert.save_original_checkpoint, or checkpoint.save_checkpoint for a file of ours"
        )
    rest = jnp.dtype(jnp.float32) if dtype is None else as_dtype(dtype)
    found = with_head(parameters_of(model, rest), model.config)
    if include_rope_inv_freq:
        found |= {name: _cast(name, table, rest) for name, table in rotary_tables(model.config).items()}
    return found


def parameters_of(model: MegalodonForCausalLM, dtype: np.dtype) -> dict[str, Pending]:
    """Every parameter by name, in `dtype` but for the sensitive ones, which are float32."""
    dtypes = {True: jnp.dtype(jnp.float32), False: dtype}
    return {name: _cast(name, leaf, dtypes[is_sensitive(name)]) for name, leaf in named_parameters(model).items()}


def with_head(parameters: Mapping[str, Pending], config: MegalodonConfig) -> dict[str, Pending]:
    """The parameters, and a tied head as a tensor of its own."""
    return {**parameters, HEAD: parameters[EMBEDDING]} if config.tied else dict(parameters)


def _cast(name: str, leaf: Any, dtype: np.dtype) -> Pending:
    return Pending(leaf.shape, dtype, lambda: cast(name, np.asarray(leaf), dtype))


def convert_jax_to_torch(
    model: MegalodonForCausalLM, *, dtype: Any = None, include_rope_inv_freq: bool = False
) -> "dict[str, torch.Tensor]":
    """State dict of CPU tensors that megalodon-hf loads with `strict=True`; needs torch.

    Args:
        model: the JAX model.
        dtype: of jnp or torch, for everything but the sensitive parameters, which are always float32; float32 if None.
        include_rope_inv_freq: add the rotary frequencies, which a strict load does not expect.

    Raises:
        ValueError: a model of variant "original", an unsuitable dtype, or one that a weight overflows.
    """
    tensors = exported(model, dtype, include_rope_inv_freq)
    return {name: as_torch(tensor.make()) for name, tensor in tensors.items()}


def load_weights_from_torch(model: MegalodonForCausalLM, state_dict: Mapping[str, Any]) -> MegalodonForCausalLM:
    """The model with every parameter taken from `state_dict` (torch tensors or arrays), in the model's own dtypes.

    Sensitive parameters come out as float32.

    Raises:
        KeyError: a parameter is missing.
        ValueError: a tensor of another shape, not floating, sparse, without memory, or with NaN or infinities; an
            unknown key; a tied head or a rotary table that does not match.
    """
    return load_tensors(model, named_parameters(model), InMemory(state_dict))
