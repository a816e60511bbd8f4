"""The state dict of megalodon-hf. Its names are ours, and no tensor is transposed.

    name there                                         here
    every name of `named_parameters`                   the same
    lm_head.weight of a tied model                     no leaf: must equal model.embed.weight
    model.layers.{i}.attn.inner.rope.inv_freq          no leaf: must be the frequencies of config.rope_base

Sensitive parameters (`megalodon_jax.precision`) are float32 on both sides, whatever the rest is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.convert.sizes import differences
from megalodon_jax.convert.tensors import as_dtype, as_numpy, as_torch
from megalodon_jax.files import Pending, Signature
from megalodon_jax.model import MegalodonForCausalLM
from megalodon_jax.parameters import named_parameters
from megalodon_jax.precision import is_sensitive
from reference.normalized_rotary import inv_freq

if TYPE_CHECKING:
    import torch

StateDict = dict[str, Any]  # tensors of torch, or arrays, by name
HEAD, EMBEDDING = "lm_head.weight", "model.embed.weight"


@runtime_checkable
class Tensors(Protocol):
    """Where weights come from: their shapes and dtypes, and one of them at a time."""

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Shape and dtype by name."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        ...


@dataclass(frozen=True)
class InMemory:
    """A state dict of torch tensors or arrays as `Tensors`."""

    state_dict: Mapping[str, Any]

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Shape and dtype by name."""
        return {name: _signature(value) for name, value in self.state_dict.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        return as_numpy(self.state_dict[name])


def _signature(value: Any) -> Signature:
    value = value if hasattr(value, "dtype") else np.asarray(value)
    return tuple(value.shape), str(value.dtype).removeprefix("torch.")


def exported(model: MegalodonForCausalLM, dtype: Any = None, include_rope_inv_freq: bool = False) -> dict[str, Pending]:
    """The tensors of a model under megalodon-hf's names, each made when it is asked for."""
    rest = jnp.dtype(jnp.float32) if dtype is None else as_dtype(dtype)
    found = with_head(parameters_of(model, rest), model.config)
    if include_rope_inv_freq:
        found |= {name: _cast(table, rest) for name, table in rotary_tables(model.config).items()}
    return found


def parameters_of(model: MegalodonForCausalLM, dtype: np.dtype) -> dict[str, Pending]:
    """Every parameter by name, in `dtype` but for the sensitive ones, which are float32."""
    parameters = named_parameters(model).items()
    return {name: _cast(leaf, jnp.dtype(jnp.float32) if is_sensitive(name) else dtype) for name, leaf in parameters}


def with_head(parameters: Mapping[str, Pending], config: MegalodonConfig) -> dict[str, Pending]:
    """The parameters, and a tied head as a tensor of its own."""
    return {**parameters, HEAD: parameters[EMBEDDING]} if config.tied else dict(parameters)


def _cast(leaf: Any, dtype: np.dtype) -> Pending:
    return Pending(leaf.shape, dtype, lambda: np.asarray(leaf).astype(dtype))


def convert_jax_to_torch(
    model: MegalodonForCausalLM, *, dtype: Any = None, include_rope_inv_freq: bool = False
) -> "dict[str, torch.Tensor]":
    """State dict of CPU tensors that megalodon-hf loads with `strict=True`; needs torch.

    Args:
        model: the JAX model.
        dtype: of jnp or torch, for everything but the sensitive parameters, which are always float32; float32 if None.
        include_rope_inv_freq: add the rotary frequencies, which a strict load does not expect.
    """
    tensors = exported(model, dtype, include_rope_inv_freq)
    return {name: as_torch(tensor.make()) for name, tensor in tensors.items()}


def load_weights_from_torch(model: MegalodonForCausalLM, state_dict: Mapping[str, Any]) -> MegalodonForCausalLM:
    """The model with every parameter taken from `state_dict` (torch tensors or arrays), in the model's own dtypes.

    Sensitive parameters come out as float32.

    Raises:
        KeyError: a parameter is missing.
        ValueError: a tensor of another shape, not floating, or with NaN or infinities; an unknown key; a tied head or a
            rotary table that does not match.
    """
    return load_tensors(model, named_parameters(model), InMemory(state_dict))


def load_tensors(model: MegalodonForCausalLM, parameters: Mapping[str, Any], tensors: Tensors) -> MegalodonForCausalLM:
    """The same from any `Tensors`; `parameters` are arrays or shapes by name.

    One tensor at a time is held beside those of the model.
    """
    values = [jnp.asarray(pending.make()) for pending in checked(parameters, tensors, model.config).values()]
    return jax.tree.unflatten(jax.tree.structure(model), values)


def checked(parameters: Mapping[str, Any], tensors: Tensors, config: MegalodonConfig) -> dict[str, Pending]:
    """Every parameter of a model from `tensors`, in the dtype it has there, read when it is made.

    Names, shapes and dtypes are compared first, then what a model does not keep: a tied head, rotary tables.
    """
    _check(parameters, tensors.signatures, config)
    if config.tied and HEAD in tensors.signatures and not _equal(tensors.read(HEAD), tensors.read(EMBEDDING)):
        raise ValueError(f"{HEAD} differs from the embedding, but this config ties them (share_emb=False?)")
    for name, table in rotary_tables(config).items():
        if name in tensors.signatures and not np.allclose(tensors.read(name).astype(np.float32), table, rtol=1e-2):
            raise ValueError(f"{name} does not match rope_base={config.effective_rope_base}")

    def parameter(name: str, like: Any) -> Pending:
        dtype = jnp.dtype(jnp.float32) if is_sensitive(name) else jnp.dtype(like.dtype)

        def make() -> np.ndarray:
            value = tensors.read(name)
            require_finite(name, value)
            return value.astype(dtype)

        return Pending(tuple(like.shape), dtype, make)

    return {name: parameter(name, like) for name, like in parameters.items()}


def require_finite(name: str, value: np.ndarray) -> None:
    """ValueError if there is a NaN or an infinity."""
    if not np.isfinite(value).all():
        bad = int(value.size - np.isfinite(value).sum())
        raise ValueError(f"{name} has {bad} values that are NaN or infinite; the weights are of a run that diverged")


def _equal(head: np.ndarray, embedding: np.ndarray) -> bool:
    return np.array_equal(head, embedding.astype(head.dtype))


def _check(parameters: Mapping[str, Any], given: Mapping[str, Signature], config: MegalodonConfig) -> None:
    hint = differences(given, config)
    for name in parameters:
        if name not in given:
            raise KeyError(f"Missing key in state_dict: {name}.{hint}")
    expected = {name: tuple(like.shape) for name, like in parameters.items()}
    expected |= {name: table.shape for name, table in rotary_tables(config).items()}
    expected |= {HEAD: expected.get(HEAD, expected[EMBEDDING])}
    if unknown := sorted(given.keys() - expected.keys()):
        raise ValueError(f"Unknown keys in state_dict: {', '.join(unknown[:5])} ({len(unknown)} in all).{hint}")
    for name, (shape, dtype) in given.items():
        if shape != expected[name]:
            raise ValueError(f"Shape mismatch for '{name}': expected {expected[name]}, got {shape}.{hint}")
        if dtype not in ("float32", "bfloat16", "float16", "float64"):
            raise ValueError(f"{name} must be floating, got {dtype}")


def rotary_tables(config: MegalodonConfig) -> dict[str, np.ndarray]:
    """The rotary frequencies, by the name they have in every layer."""
    table = inv_freq(config.head_dim, config.effective_rope_base).astype(np.float32)
    return {f"model.layers.{i}.attn.inner.rope.inv_freq": table for i in range(config.num_layers)}
