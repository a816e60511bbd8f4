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

    def cast(leaf: Any, wanted: np.dtype) -> Pending:
        return Pending(leaf.shape, wanted, lambda: np.asarray(leaf).astype(wanted))

    parameters = named_parameters(model)
    found = {n: cast(a, jnp.dtype(jnp.float32) if is_sensitive(n) else rest) for n, a in parameters.items()}
    if model.tied:
        found[HEAD] = found[EMBEDDING]
    if include_rope_inv_freq:
        found |= {name: cast(table, rest) for name, table in _rope(model.config).items()}
    return found


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
    """The same from any `Tensors`; `parameters` are arrays or shapes by name. Names, shapes and dtypes come first.

    One tensor at a time is held beside those of the model.
    """
    given = tensors.signatures
    _check(parameters, given, model)

    def leaf(name: str, like: Any) -> jax.Array:
        value = tensors.read(name)
        require_finite(name, value)
        return jnp.array(value, jnp.float32 if is_sensitive(name) else like.dtype)

    loaded = jax.tree.unflatten(jax.tree.structure(model), [leaf(name, like) for name, like in parameters.items()])
    if model.tied and HEAD in given:
        embedding = np.asarray(loaded.model.embed.weight)
        if not np.array_equal(tensors.read(HEAD).astype(embedding.dtype), embedding):
            raise ValueError(f"{HEAD} differs from the embedding, but this config ties them (share_emb=False?)")
    for name, table in _rope(model.config).items():
        if name in given and not np.allclose(tensors.read(name).astype(np.float32), table, rtol=1e-2):
            raise ValueError(f"{name} does not match rope_base={model.config.effective_rope_base}")
    return loaded


def require_finite(name: str, value: np.ndarray) -> None:
    """ValueError if there is a NaN or an infinity."""
    if not np.isfinite(value).all():
        bad = int(value.size - np.isfinite(value).sum())
        raise ValueError(f"{name} has {bad} values that are NaN or infinite; the weights are of a run that diverged")


def _check(parameters: Mapping[str, Any], given: Mapping[str, Signature], model: MegalodonForCausalLM) -> None:
    config, rope = model.config, _rope(model.config)
    for name in parameters:
        if name not in given:
            raise KeyError(f"Missing key in state_dict: {name}")
    expected = {name: tuple(like.shape) for name, like in parameters.items()}
    expected |= {name: table.shape for name, table in rope.items()} | {HEAD: expected.get(HEAD, expected[EMBEDDING])}
    if unknown := sorted(given.keys() - expected.keys()):
        raise ValueError(
            f"Unknown keys in state_dict: {', '.join(unknown[:5])} ({len(unknown)} in all).{_hint(unknown, config)}"
        )
    for name, (shape, dtype) in given.items():
        if shape != expected[name]:
            raise ValueError(f"Shape mismatch for '{name}': expected {expected[name]}, got {shape}")
        if dtype not in ("float32", "bfloat16", "float16", "float64"):
            raise ValueError(f"{name} must be floating, got {dtype}")


def _hint(unknown: list[str], config: MegalodonConfig) -> str:
    if any(".fc3." in name for name in unknown) and not config.swiglu:
        return " Checkpoint includes SwiGLU weights but config.swiglu=False."
    if any("norm." in name for name in unknown) and not config.norm_affine:
        return " Checkpoint includes affine norm weights but norm_affine=False."
    if any(name.startswith("model.layers.") for name in unknown):
        return f" Layer count mismatch? The config has {config.num_layers} layers."
    return ""


def _rope(config: MegalodonConfig) -> dict[str, np.ndarray]:
    table = inv_freq(config.head_dim, config.effective_rope_base).astype(np.float32)
    return {f"model.layers.{i}.attn.inner.rope.inv_freq": table for i in range(config.num_layers)}
