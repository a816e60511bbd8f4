"""Checkpoint files: one safetensors file, a folder or an index of several, or (only if asked for) a pickle.

Files are untrusted: names, shapes and dtypes are compared with the config before anything is allocated, an index may
name files beside it and no others, and a pickle is opened by torch's restricted reader alone.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from megalodon_jax.atomic import new_folder
from megalodon_jax.config import MegalodonConfig
from megalodon_jax.convert.loading import Tensors, load_model
from megalodon_jax.convert.pickles import open_pickle
from megalodon_jax.convert.shards import INDEX, METADATA, WEIGHTS, Shards, write_pretrained
from megalodon_jax.convert.state_dict import exported
from megalodon_jax.convert.tensors import as_dtype
from megalodon_jax.files import TensorFile, write
from megalodon_jax.model import MegalodonForCausalLM


def save_safetensors(
    model: MegalodonForCausalLM,
    path: str | os.PathLike,
    *,
    dtype: Any = None,
    include_rope_inv_freq: bool = False,
    max_shard_bytes: int | None = None,
) -> None:
    """Write the tensors of `convert_jax_to_torch` to a safetensors file, which replaces one that is there in one step.

    Args:
        model, dtype, include_rope_inv_freq: as there.
        path: the file; with `max_shard_bytes` a folder, which must not be there yet.
        max_shard_bytes: write several files of at most this many bytes of tensors (or one tensor) and their index; one
            file if all are fewer.

    Raises:
        ValueError: as there, or max_shard_bytes not positive.
        FileExistsError: the folder is there.
        OSError: it cannot be written, or the file is a folder; what was there stays.
    """
    path, tensors = Path(path), exported(model, dtype, include_rope_inv_freq)
    if max_shard_bytes is None:
        write(path, tensors, METADATA)
    elif max_shard_bytes <= 0:
        raise ValueError(f"max_shard_bytes must be positive or None, got {max_shard_bytes}")
    else:
        with new_folder(path) as folder:
            write_pretrained(folder, tensors, max_shard_bytes)


def load_from_pretrained(
    path: str | os.PathLike,
    config: MegalodonConfig,
    dtype: Any = None,
    *,
    key: Any = None,
    allow_pickle_checkpoint: bool = False,
) -> MegalodonForCausalLM:
    """A model of `config` with the weights of a checkpoint under megalodon-hf's names.

    Args:
        path: a .safetensors file; an index of several; a folder with either; or, with `allow_pickle_checkpoint`, a file
            of `torch.save`.
        config: must match the checkpoint.
        dtype: of jnp or torch, for everything but the sensitive parameters, which stay float32; replaces
            config.param_dtype, which is what None means.
        key: not needed, nothing is drawn; there for callers that give one.
        allow_pickle_checkpoint: read .pt, .pth and .bin files too, with `weights_only=True`.

    Raises:
        FileNotFoundError: no such file.
        KeyError: a parameter is missing.
        ValueError: as in `load_weights_from_torch`; a file that is damaged; an index that does not fit its files; a
            pickle that was not asked for, or that needs more than tensors.
        ImportError, RuntimeError: a pickle, and no torch, or one whose restricted reader has known holes.
    """
    return load_model(open_checkpoint(path, allow_pickle_checkpoint), with_dtype(config, dtype))


def with_dtype(config: MegalodonConfig, dtype: Any) -> MegalodonConfig:
    """The config with another param_dtype, of jnp or torch; None keeps it."""
    return config if dtype is None else dataclasses.replace(config, param_dtype=as_dtype(dtype))


def open_checkpoint(path: str | os.PathLike, allow_pickle_checkpoint: bool = False) -> Tensors:
    """The tensors of a checkpoint; errors as in `load_from_pretrained`."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"Checkpoint not found: {path}")
    if path.is_dir():
        found = [path / name for name in (WEIGHTS, INDEX) if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(
                f"Checkpoint not found: {path} holds neither {WEIGHTS} nor {INDEX}; give a file of another name itself"
            )
        path = found[0]
    if path.name.endswith(".safetensors"):
        return TensorFile(path)
    if path.name.endswith(".json"):
        return Shards(path)
    if not allow_pickle_checkpoint:
        raise ValueError(
            f"{path} is no safetensors file. If it is a pickle of torch.save, and you trust where it comes from, give "
            "allow_pickle_checkpoint=True (on the command line --allow-pickle)"
        )
    return open_pickle(path)
