"""Checkpoints of the CUDA release: one file consolidated.pth, or consolidated.NN.pth for each of several GPUs."""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.convert.consolidation import CONSOLIDATION, shard_count
from megalodon_jax.convert.loading import Tensors, load_model
from megalodon_jax.convert.original_names import cut_axis, here, is_prior, last_axis, part
from megalodon_jax.convert.pretrained import open_checkpoint, with_dtype
from megalodon_jax.files import Signature
from megalodon_jax.model import MegalodonForCausalLM

CONSOLIDATED = "consolidated.pth"


def load_original_checkpoint(
    path: str | os.PathLike, config: MegalodonConfig, dtype: Any = None, *, allow_pickle_checkpoint: bool = False
) -> MegalodonForCausalLM:
    """A model of `config`, whose variant is "original", with the weights of a checkpoint of the CUDA release.

    Args:
        path: consolidated.pth, or the folder with it or with consolidated.NN.pth and consolidate_config.json.
        config: must match the checkpoint.
        dtype: as in `load_from_pretrained`.
        allow_pickle_checkpoint: the files are pickles: say that you trust where they come from.

    Raises:
        FileNotFoundError: no such file, or one of several missing.
        KeyError, ValueError, RuntimeError: as in `load_from_pretrained`; another variant; a norm with a prior that
            counts; shards that do not fit together.
    """
    config = with_dtype(config, dtype)
    return load_model(open_original(path, config, allow_pickle_checkpoint), config)


def open_original(path: str | os.PathLike, config: MegalodonConfig, allow_pickle_checkpoint: bool) -> "Original":
    """The tensors of a checkpoint of the release under our names; errors as in `load_original_checkpoint`."""
    return as_original([open_checkpoint(file, allow_pickle_checkpoint) for file in _files(Path(path))], config)


def as_original(shards: list[Tensors], config: MegalodonConfig) -> "Original":
    """The tensors of a checkpoint of the release, whose files are open, under our names.

    Raises:
        ValueError: another variant, or as in `Original`.
    """
    if config.variant != "original":
        raise ValueError(f"a checkpoint of the CUDA release needs variant='original', got {config.variant!r}")
    return Original(shards, config.norm_num_groups)


def is_part(path: Path) -> bool:
    """Is it, by its name, one of several files of the release?"""
    return re.fullmatch(r"consolidated\.\d+\.pth", path.name) is not None


def holds_release(folder: Path) -> bool:
    """Are there files of the release in a folder?"""
    return any(folder.glob("consolidated*.pth")) or (folder / CONSOLIDATION).exists()


class Original:
    """Shards of a checkpoint of the CUDA release under our names.

    Raises:
        ValueError: a name that the release does not have, shards of different tensors, shapes or dtypes, a norm whose
            prior counts or that has other groups.
    """

    def __init__(self, shards: list[Tensors], groups: int):
        self._shards, given = shards, shards[0].signatures
        for number, shard in enumerate(shards):
            _require_same(given, shard.signatures, f"shard {number} of {len(shards)}")
            _require_no_prior(shard, groups, len(shards))
        names = [name for name in given if not is_prior(name)]
        if unknown := sorted(name for name in names if not here(name)):
            raise ValueError(f"Unknown keys in checkpoint: {', '.join(unknown[:5])} ({len(unknown)} in all)")
        self._where = {ours: name for name in names for ours in here(name)}
        self.signatures = {ours: self._signature(ours, *given[name]) for ours, name in self._where.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, put together.

        Raises:
            ValueError: it should be the same in every shard, and is not.
        """
        there = self._where[name]
        parts, axis = [part(name, shard.read(there)) for shard in self._shards], cut_axis(there)
        if len(parts) > 1 and axis is not None:
            return np.concatenate(parts, axis=axis)
        if any(one.tobytes() != parts[0].tobytes() for one in parts[1:]):
            raise ValueError(f"{there} differs between shards")
        return parts[0]

    def _signature(self, name: str, shape: tuple[int, ...], dtype: str) -> Signature:
        there = self._where[name]
        size, axis = last_axis(there), cut_axis(there)
        if (size is not None and shape[-1:] != (size,)) or (axis is not None and len(shape) <= axis):
            expected = "" if size is None else f" with a last axis of {size}"
            raise ValueError(f"Shape mismatch for '{there}': expected a tensor of more axes{expected}, got {shape}")
        whole = list(shape if size is None else shape[:-1])
        if axis is not None:
            whole[axis] *= len(self._shards)
        return tuple(whole), dtype


def _require_same(first: Mapping[str, Signature], given: Mapping[str, Signature], which: str) -> None:
    if apart := sorted(first.keys() ^ given.keys()):
        raise ValueError(f"not in every shard: {', '.join(apart[:5])} ({len(apart)} in all)")
    for name, signature in given.items():
        if signature != first[name]:
            raise ValueError(f"{name} is {_said(signature)} in {which} and {_said(first[name])} in shard 0")


def _require_no_prior(shard: Tensors, groups: int, count: int) -> None:
    for name, (shape, dtype) in shard.signatures.items():
        if not is_prior(name):
            continue
        if name.endswith("prior_count"):
            if shape != () or not dtype.startswith("int"):
                raise ValueError(f"{name} is {_said((shape, dtype))}, expected one integer")
            if shard.read(name) != 0:
                raise ValueError(f"{name} is not 0: norms with a prior that counts are not supported")
        elif (found := count * math.prod(shape)) != groups or len(shape) != 1:
            raise ValueError(f"norm_num_groups is {groups} in the config and {found} in the weights ({name})")


def _said(signature: Signature) -> str:
    shape, dtype = signature
    return f"{dtype}{list(shape)}"


def _files(path: Path) -> list[Path]:
    if path.is_file():
        if is_part(path):
            raise ValueError(f"{path} is one of several files of a model; give their folder")
        return [path]
    config = path / CONSOLIDATION
    if not config.is_file():
        if any(path.glob("consolidated.*.pth")):
            raise FileNotFoundError(f"{path} holds shards, but no {CONSOLIDATION} that says how many")
        return [path / CONSOLIDATED]
    count = shard_count(config)
    if count == 1:
        return [path / CONSOLIDATED]
    return [path / f"consolidated.{number:02d}.pth" for number in range(count)]
