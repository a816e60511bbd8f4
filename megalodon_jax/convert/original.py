"""Checkpoints of the CUDA release: one file consolidated.pth, or consolidated.NN.pth for each of several GPUs."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.convert.original_names import PRIORS, cut_axis, part, there
from megalodon_jax.convert.pretrained import open_checkpoint, with_dtype
from megalodon_jax.convert.sizes import ROTARY
from megalodon_jax.convert.state_dict import HEAD, Tensors, load_tensors
from megalodon_jax.files import Signature
from megalodon_jax.model import MegalodonForCausalLM
from megalodon_jax.model.abstract import abstract_model

CONSOLIDATION = "consolidate_config.json"
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
    model, parameters = abstract_model(with_dtype(config, dtype))
    return load_tensors(model, parameters, open_original(path, config, parameters, allow_pickle_checkpoint))


def open_original(
    path: str | os.PathLike, config: MegalodonConfig, parameters: Iterable[str], allow_pickle_checkpoint: bool
) -> "Original":
    """The tensors of a checkpoint of the release under our names; errors as in `load_original_checkpoint`."""
    if config.variant != "original":
        raise ValueError(f"a checkpoint of the CUDA release needs variant='original', got {config.variant!r}")
    shards = [open_checkpoint(file, allow_pickle_checkpoint) for file in _files(Path(path))]
    return Original(shards, [*parameters, HEAD, ROTARY], config.norm_num_groups)


class Original:
    """Shards of a checkpoint of the CUDA release under our names; a tensor that none of `names` stands for keeps its.

    Raises:
        ValueError: shards of different tensors, a norm whose prior counts, or one with other groups.
    """

    def __init__(self, shards: list[Tensors], names: Iterable[str], groups: int):
        self._shards = shards
        found = [set(shard.signatures) for shard in shards]
        if apart := sorted(set.union(*found) - set.intersection(*found)):
            raise ValueError(f"not in every shard: {', '.join(apart[:5])} ({len(apart)} in all)")
        for name in sorted(found[0]):
            if name.endswith("prior_count") and np.any(shards[0].read(name) != 0):
                raise ValueError(f"{name} is not 0: norms with a prior that counts are not supported")
            given = sum(int(np.prod(shard.signatures[name][0])) for shard in shards)
            if name.endswith("prior_mean") and given != groups:
                raise ValueError(f"norm_num_groups is {groups} in the config and {given} in the weights ({name})")
        left = {name for name in found[0] if not name.endswith(PRIORS)}
        where = {name: there(name) for name in names if there(name) in left}
        self._where = where | {name: name for name in left - set(where.values())}

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Shape and dtype by name."""
        return {here: self._signature(here, there) for here, there in self._where.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, put together.

        Raises:
            ValueError: it should be the same in every shard, and is not.
        """
        there = self._where[name]
        parts, axis = [part(name, shard.read(there)) for shard in self._shards], cut_axis(there)
        if axis is not None:
            return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)
        if any(not np.array_equal(one, parts[0]) for one in parts):
            raise ValueError(f"{there} differs between shards")
        return parts[0]

    def _signature(self, here: str, there: str) -> Signature:
        given = [shard.signatures[there] for shard in self._shards]
        try:
            shapes = [part(here, np.broadcast_to(False, shape)).shape for shape, _ in given]
            axis = cut_axis(there)
            if axis is None or len(shapes) == 1:
                return shapes[0], given[0][1]
            return (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :]), given[0][1]
        except IndexError:  # without the axis that is asked for: a shape that fits nothing
            return given[0]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    config = path / CONSOLIDATION
    if not config.is_file():
        return [path / CONSOLIDATED]
    try:
        count = json.loads(config.read_text(encoding="utf-8"))["model_parallel_size"]
        if not isinstance(count, int) or not 1 <= count <= 1024:
            raise TypeError(f"model_parallel_size is {count!r}, expected an integer from 1 on")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{config} does not say into how many files the model is cut: {error}") from error
    if count == 1:
        return [path / CONSOLIDATED]
    return [path / f"consolidated.{number:02d}.pth" for number in range(count)]
