"""The state of a stream in a safetensors file.

Tensors are named after where they are in the cache (`layer_caches.0.attn.k`); complex ones are stored as two. The
metadata hold the config the cache is of, and the SHA-256 of names, dtypes, shapes and bytes of all tensors.
"""

import hashlib
import os
from dataclasses import fields
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.files import flush, pending, read_tensors, write_pending
from megalodon_jax.types import AttentionCache, EMAState, LayerCache, ModelCache, NormState

FORMAT = "megalodon-jax-cache-1"
_PARTS = {"attn": AttentionCache, "norm": NormState, "ema": EMAState}


def save_cache(cache: ModelCache, path: str | os.PathLike, config: MegalodonConfig) -> None:
    """Write the cache of a model of `config`; a file already there is replaced in one step.

    Raises:
        ValueError: a cache of another number of layers than the config.
        OSError: the file cannot be written; what was there stays.
    """
    path = Path(path)
    if len(cache.layer_caches) != config.num_layers:
        raise ValueError(f"the cache has {len(cache.layer_caches)} layers, the config {config.num_layers}")
    tensors = _tensors(cache)
    metadata = {"format": FORMAT, "config": config.to_json(), "sha256": _digest(tensors)}
    write_pending(path, tensors, metadata)
    os.replace(pending(path), path)
    flush(path.parent)


def load_cache(path: str | os.PathLike, config: MegalodonConfig) -> ModelCache:
    """The cache in a file, bit for bit.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole file of `save_cache`, damaged, or of a model of another config.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is not a cache: its format is {metadata.get('format')!r}, expected {FORMAT!r}")
    if metadata.get("sha256") != _digest(tensors):
        raise ValueError(f"{path} is damaged: its tensors are not those that were saved; copy or save it again")
    saved = MegalodonConfig.from_json(metadata["config"])
    differing = [
        f"{name} {getattr(saved, name)!r}, not {getattr(config, name)!r}"
        for name in vars(config)
        if getattr(saved, name) != getattr(config, name)
    ]
    if differing:
        raise ValueError(
            f"{path} is the cache of another model: {'; '.join(differing)}; give the config it was saved with"
        )
    return _cache(tensors, config.num_layers)


def _tensors(cache: ModelCache) -> dict[str, np.ndarray]:
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(cache):
        name, value = jax.tree_util.keystr(path, simple=True, separator="."), np.asarray(leaf)
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

    def layer(name: str) -> LayerCache:
        parts = {field: part(kind, f"{name}.{field}") for field, kind in _PARTS.items()}
        return LayerCache(**parts, position=array(f"{name}.position"))

    layers = tuple(layer(f"layer_caches.{number}") for number in range(num_layers))
    return ModelCache(layers, part(NormState, "final_norm"))


def _digest(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
