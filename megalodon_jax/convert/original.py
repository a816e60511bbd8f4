"""Checkpoints of the CUDA release.

    there                                           here
    embed.weight                                    model.embed.weight
    layers.{i}.mega.rmsnorm.weight                  model.layers.{i}.attn.rmsnorm.gamma
    layers.{i}.mega.cema.gamma [D, N, 2]            model.layers.{i}.attn.cema.gamma_real, gamma_imag [D, N]
    layers.{i}.mega.cema.omega [D, 1]               model.layers.{i}.attn.cema.omega [D]
    layers.{i}.mega.<the rest>                      model.layers.{i}.attn.<the rest>
    layers.{i}.nffn.alpha                           model.layers.{i}.ffn.rescale
    layers.{i}.nffn.<the rest>                      model.layers.{i}.ffn.<the rest>
    output.final_norm.<...>                         model.norm.<...>
    output.output.weight                            lm_head.weight
    rope.freqs, ...prior_count|prior_mean|prior_logv    none: derived, and without weight as long as prior_count is 0

A model trained on several GPUs lies in several files, consolidated.NN.pth. Tensors are cut along the axis below, or are
the same in all of them.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.convert.pretrained import open_checkpoint, with_dtype
from megalodon_jax.convert.state_dict import HEAD, Tensors, load_tensors
from megalodon_jax.files import Signature
from megalodon_jax.model import MegalodonForCausalLM
from megalodon_jax.model.abstract import abstract_model

CONFIG = "consolidate_config.json"
_ALONG_1 = ("embed.weight", "output.output.weight", "wh2.weight", "fc2.weight", "mega.gamma", "mega.beta")
_REPLICATED = ("rmsnorm.weight", "nffn.norm.weight", "nffn.norm.bias", "nffn.alpha")
_DROPPED = ("prior_count", "prior_mean", "prior_logv", "rope.freqs")


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
    if config.variant != "original":
        raise ValueError(f"a checkpoint of the CUDA release needs variant='original', got {config.variant!r}")
    shards = [open_checkpoint(file, allow_pickle_checkpoint) for file in _files(Path(path))]
    return load_tensors(*abstract_model(with_dtype(config, dtype)), Original(shards))


class Original:
    """Shards of a checkpoint of the CUDA release under our names.

    Raises:
        ValueError: shards of different tensors, or a norm whose prior counts.
    """

    def __init__(self, shards: list[Tensors]):
        self._shards = shards
        names = [set(shard.signatures) for shard in shards]
        if apart := sorted(set.union(*names) - set.intersection(*names)):
            raise ValueError(f"not in every shard: {', '.join(apart[:5])} ({len(apart)} in all)")
        for name in names[0]:
            if name.endswith("prior_count") and np.any(shards[0].read(name) != 0):
                raise ValueError(f"{name} is not 0: norms with a prior that counts are not supported")
        self._where = {here: there for there in names[0] if not there.endswith(_DROPPED) for here in _here(there)}

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
        parts = [_part(name, shard.read(there)) for shard in self._shards]
        if not there.endswith(_REPLICATED):
            return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=_axis(there))
        if any(not np.array_equal(part, parts[0]) for part in parts):
            raise ValueError(f"{there} differs between shards")
        return parts[0]

    def _signature(self, here: str, there: str) -> Signature:
        given = [shard.signatures[there] for shard in self._shards]
        shapes = [_part(here, np.broadcast_to(False, shape)).shape for shape, _ in given]
        if there.endswith(_REPLICATED) or len(shapes) == 1:
            return shapes[0], given[0][1]
        axis = _axis(there)
        return (*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :]), given[0][1]


def _here(name: str) -> list[str]:
    """Our names of a tensor: two for one of complex numbers."""
    name = re.sub(r"^layers\.(\d+)\.mega\.", r"model.layers.\1.attn.", name)
    name = re.sub(r"^layers\.(\d+)\.nffn\.", r"model.layers.\1.ffn.", name)
    name = re.sub(r"^output\.final_norm\.", "model.norm.", name).replace("output.output.weight", HEAD)
    name = re.sub(r"^embed\.", "model.embed.", name)
    name = name.replace("rmsnorm.weight", "rmsnorm.gamma").replace("ffn.alpha", "ffn.rescale")
    return [f"{name}_real", f"{name}_imag"] if name.endswith("cema.gamma") else [name]


def _part(here: str, value: np.ndarray) -> np.ndarray:
    """Of complex numbers the real or imaginary part; omega without its last axis."""
    if here.endswith(("cema.gamma_real", "cema.gamma_imag")):
        return value[..., 0 if here.endswith("real") else 1]
    return value[..., 0] if here.endswith("cema.omega") else value


def _axis(there: str) -> int:
    return 1 if there.endswith(_ALONG_1) else 0


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    config = path / CONFIG
    if not config.is_file():
        return [path / "consolidated.pth"]
    try:
        count = json.loads(config.read_text(encoding="utf-8"))["model_parallel_size"]
        if not isinstance(count, int) or not 1 <= count <= 1024:
            raise TypeError(f"model_parallel_size is {count!r}, expected an integer from 1 on")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{config} does not say into how many files the model is cut: {error}") from error
    if count == 1:
        return [path / "consolidated.pth"]
    return [path / f"consolidated.{number:02d}.pth" for number in range(count)]
