"""The state of a stream in a safetensors file.

Tensors are named after where they are in the cache (`layer_caches.0.attn.k`); complex ones are stored as two. The
metadata hold the config the cache is of. A cache fits every config that gives the same states: options of training,
which tokens begin and end, and what multiplies (`gemm_backend`) may differ.
"""

import os
from dataclasses import fields
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from megalodon_jax.comparing import resolved
from megalodon_jax.config import MegalodonConfig
from megalodon_jax.files import TensorFile, write
from megalodon_jax.inference.cache import init_cache
from megalodon_jax.types import AttentionCache, EMAState, LayerCache, ModelCache, NormState

FORMAT = "megalodon-jax-cache-1"
_NO_MATTER = {
    "attention_dropout", "attention_dropout_mode", "bos_token_id", "dropout", "eos_token_id", "gemm_backend",
    "hidden_dropout", "init_mode", "max_positions", "scan_layers", "remat", "softmax_dtype", "use_checkpoint",
}  # fmt: skip
_PARTS = {"attn": AttentionCache, "norm": NormState, "ema": EMAState}


def save_cache(cache: ModelCache, path: str | os.PathLike, config: MegalodonConfig) -> None:
    """Write the cache of a model of `config`; a file already there is replaced in one step.

    Raises:
        ValueError: a cache whose layers or shapes are not those of the config.
        OSError: the file cannot be written; what was there stays.
    """
    path = Path(path)
    _require_fit(cache, config)
    tensors = _tensors(cache)
    write(path, tensors, {"format": FORMAT, "config": config.to_json()})


def load_cache(path: str | os.PathLike, config: MegalodonConfig) -> ModelCache:
    """The cache in a file, bit for bit.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole file of `save_cache`, damaged, or of a model of another config.
    """
    path = Path(path)
    file = TensorFile(path)
    metadata = file.metadata
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a cache: its format is {metadata.get('format')!r}, expected {FORMAT!r}")
    try:
        saved = MegalodonConfig.from_json(metadata.get("config", ""))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is of another version, whose config cannot be read here: {error}") from error
    there, here = _meaning(saved), _meaning(config)
    differing = [f"{name} {there[name]!r}, not {here[name]!r}" for name in here if there[name] != here[name]]
    if differing:
        raise ValueError(
            f"{path} is the cache of another model: {'; '.join(differing)}; give the config it was saved with"
        )
    return _cache({name: file.read(name) for name in file.signatures}, config.num_layers)


def _meaning(config: MegalodonConfig) -> dict:
    """What the states depend on, each said in one way."""
    return {name: value for name, value in resolved(config).items() if name not in _NO_MATTER}


def _require_fit(cache: ModelCache, config: MegalodonConfig) -> None:
    if len(cache.layer_caches) != config.num_layers:
        raise ValueError(f"the cache has {len(cache.layer_caches)} layers, the config {config.num_layers}")
    batch = max((leaf.shape[0] for leaf in jax.tree.leaves(cache)), default=0)
    allocate = {"allocate_kv": True, "allocate_norm": True, "allocate_ema": True}
    expected = _named(jax.eval_shape(lambda: init_cache(config, batch, **allocate)))
    for name, leaf in _named(cache).items():
        slots = leaf.shape[1:2] if name.endswith((".k", ".v")) else expected[name].shape[1:2]  # a ring may be cut
        shape = (*expected[name].shape[:1], *slots, *expected[name].shape[2:])
        if leaf.shape != shape:
            raise ValueError(f"the cache is not of this config: {name} has shape {leaf.shape}, expected {shape}")


def _named(cache: ModelCache) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(cache)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _tensors(cache: ModelCache) -> dict[str, np.ndarray]:
    found = {}
    for name, leaf in _named(cache).items():
        value = np.asarray(leaf)
        complex_ = np.iscomplexobj(value)
        found |= {f"{name}.real": np.real(value), f"{name}.imag": np.imag(value)} if complex_ else {name: value}
    return found


def _cache(tensors: dict[str, np.ndarray], num_layers: int) -> ModelCache:
    def array(name: str):
        parts = [tensors.get(part) for part in (name, f"{name}.real", f"{name}.imag")]
        whole, real, imag = (None if part is None else jnp.asarray(part) for part in parts)
        return whole if real is None or imag is None else jax.lax.complex(real, imag)

    def part(kind, name: str):
        found = {field.name: array(f"{name}.{field.name}") for field in fields(kind)}
        return None if all(value is None for value in found.values()) else kind(**found)

    def layer(name: str) -> LayerCache | None:
        parts = {field: part(kind, f"{name}.{field}") for field, kind in _PARTS.items()}
        parts["position"] = array(f"{name}.position")
        return None if all(value is None for value in parts.values()) else LayerCache(**parts)

    layers = tuple(layer(f"layer_caches.{number}") for number in range(num_layers))
    return ModelCache(layers, part(NormState, "final_norm"))
