"""A model out of tensors from anywhere, compared with its config before any of them is read."""

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from megalodon_jax.architectures import abstract_model
from megalodon_jax.config import MegalodonConfig
from megalodon_jax.convert.sizes import require_fit
from megalodon_jax.convert.tensors import as_numpy, cast, require_finite, require_ordinary
from megalodon_jax.files import Pending, Signature
from megalodon_jax.model import MegalodonForCausalLM
from megalodon_jax.precision import is_sensitive
from reference.normalized_rotary import inv_freq

HEAD, EMBEDDING = "lm_head.weight", "model.embed.weight"
_FLOATING = ("float32", "bfloat16", "float16", "float64")
_ROTARY_RTOL = 2e-6  # of a float32 table


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


class InMemory:
    """A state dict of torch tensors or arrays as `Tensors`.

    Raises:
        ValueError: a key that is no name, a tensor that is sparse or has no memory.
    """

    def __init__(self, state_dict: Mapping[str, Any]):
        self._state_dict = state_dict
        self.signatures = {name: _signature(name, value) for name, value in state_dict.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        return as_numpy(self._state_dict[name])


def _signature(name: Any, value: Any) -> Signature:
    if not isinstance(name, str):
        raise ValueError(f"a state dict has tensors by name, got the key {name!r}")
    require_ordinary(name, value)
    value = value if hasattr(value, "dtype") else np.asarray(value)
    return tuple(value.shape), str(value.dtype).removeprefix("torch.")


def load_model(tensors: Tensors, config: MegalodonConfig) -> MegalodonForCausalLM:
    """A model of `config` with every parameter taken from `tensors`; errors as in `load_tensors`."""
    require_fit(tensors.signatures, config)  # first: it takes time to trace a model of a wrong size
    return load_tensors(*abstract_model(config), tensors)


def load_tensors(model: MegalodonForCausalLM, parameters: Mapping[str, Any], tensors: Tensors) -> MegalodonForCausalLM:
    """The model with other values; `parameters` are arrays or shapes by name.

    One tensor at a time is held beside those of the model.

    Raises:
        KeyError: a parameter is missing.
        ValueError: fields of the config that the weights contradict; an unknown name; a tensor of another shape, not
            floating, with NaN or infinities, or too large for its dtype here; a tied head or a rotary table that does
            not match.
    """
    values = [jnp.array(pending.make()) for pending in checked(parameters, tensors, model.config).values()]
    return jax.tree.unflatten(jax.tree.structure(model), values)


def checked(parameters: Mapping[str, Any], tensors: Tensors, config: MegalodonConfig) -> dict[str, Pending]:
    """Every parameter of a model from `tensors`, in the dtype it has there, read when it is made.

    Names, shapes and dtypes are compared first, then what a model does not keep: a tied head, rotary tables.
    """
    given = tensors.signatures
    require_fit(given, config)
    _check(parameters, given, config)
    if config.tied and HEAD in given:
        dtypes = {given[name][1] for name in (HEAD, EMBEDDING)}
        common = jnp.dtype(dtypes.pop() if len(dtypes) == 1 else "float64")
        if _digest(tensors, HEAD, common) != _digest(tensors, EMBEDDING, common):
            raise ValueError(f"{HEAD} differs from the embedding, but this config ties them (share_emb=False?)")
    for name, table in rotary_tables(config).items():
        if name in given and not np.allclose(
            tensors.read(name).astype(np.float64), table, rtol=max(_ROTARY_RTOL, float(jnp.finfo(given[name][1]).eps))
        ):
            raise ValueError(f"{name} does not match rope_base={config.effective_rope_base}")
    return {name: _parameter(name, like, tensors) for name, like in parameters.items()}


def _parameter(name: str, like: Any, tensors: Tensors) -> Pending:
    dtype = jnp.dtype(jnp.float32) if is_sensitive(name) else jnp.dtype(like.dtype)

    def make() -> np.ndarray:
        value = tensors.read(name)
        require_finite(name, value)
        return cast(name, value, dtype)

    return Pending(tuple(like.shape), dtype, make)


def _digest(tensors: Tensors, name: str, dtype: np.dtype) -> bytes:
    value = np.ascontiguousarray(tensors.read(name).astype(dtype, copy=False))
    return hashlib.sha256(value.view(np.uint8).data).digest()


def _check(parameters: Mapping[str, Any], given: Mapping[str, Signature], config: MegalodonConfig) -> None:
    for name in parameters:
        if name not in given:
            raise KeyError(f"Missing key in state_dict: {name}")
    expected = {name: tuple(like.shape) for name, like in parameters.items()}
    expected |= {name: table.shape for name, table in rotary_tables(config).items()}
    expected |= {HEAD: expected.get(HEAD, expected[EMBEDDING])}
    if unknown := sorted(given.keys() - expected.keys()):
        raise ValueError(f"Unknown keys in state_dict: {', '.join(unknown[:5])} ({len(unknown)} in all)")
    for name, (shape, dtype) in given.items():
        if shape != expected[name]:
            raise ValueError(f"Shape mismatch for '{name}': expected {expected[name]}, got {shape}")
        if dtype not in _FLOATING:
            raise ValueError(f"{name} must be floating, got {dtype}")


def rotary_tables(config: MegalodonConfig) -> dict[str, np.ndarray]:
    """The rotary frequencies, by the name they have in every layer."""
    table = inv_freq(config.head_dim, config.effective_rope_base).astype(np.float32)
    return {f"model.layers.{i}.attn.inner.rope.inv_freq": table for i in range(config.num_layers)}
