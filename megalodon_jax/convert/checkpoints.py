"""Whole checkpoints, weights and config.json, of any of the three formats: where one comes from, and where it goes.

    jax          model.safetensors under our names, our config
    hf           model.safetensors or several files and an index, under megalodon-hf's names, which are ours
    original     consolidated.pth under the CUDA release's names; a pickle, and torch is needed

Tensors are read, compared, cast and written one by one; consolidated.pth is put together in memory.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.convert.config_files import CONFIG, CONSOLIDATION, hf_json
from megalodon_jax.convert.loading import Tensors, checked
from megalodon_jax.convert.original import open_original
from megalodon_jax.convert.original_export import original_tensors, write_original
from megalodon_jax.convert.pretrained import open_checkpoint
from megalodon_jax.convert.shards import WEIGHTS, write_pretrained
from megalodon_jax.convert.sizes import require_fit
from megalodon_jax.convert.state_dict import with_head
from megalodon_jax.files import Pending, new_folder, write, write_text
from megalodon_jax.model.abstract import abstract_model

_HF_SHARD_BYTES = 5_000_000_000


def find_config(path: str | os.PathLike) -> Path:
    """Where the config.json of a checkpoint, a folder or a file in it, lies."""
    path = Path(path)
    return (path if path.is_dir() else path.parent) / CONFIG


def open_parameters(
    path: str | os.PathLike, config: MegalodonConfig, allow_pickle_checkpoint: bool = False
) -> dict[str, Pending]:
    """Every parameter of a model of `config` from a checkpoint of any format; none is read before it is made.

    Raises:
        FileNotFoundError, KeyError, ValueError, RuntimeError: as in `load_from_pretrained`, `load_original_checkpoint`.
    """
    path = Path(path)
    tensors: Tensors
    if path.suffix == ".pth" or any(path.glob("consolidated*.pth")) or (path / CONSOLIDATION).exists():
        tensors = open_original(path, config, allow_pickle_checkpoint)
    else:
        tensors = open_checkpoint(path, allow_pickle_checkpoint)
    require_fit(tensors.signatures, config)  # first: it takes time to trace a model of a wrong size
    return checked(abstract_model(config)[1], tensors, config)


@dataclass(frozen=True)
class Format:
    """Of a checkpoint: which tensors it holds, and how they and the config become files of a folder.

    Attributes:
        tensors: from the parameters of a model and its config; ValueError if the format has no such model.
        write: to a folder, given those tensors and the config.
    """

    tensors: Callable[[Mapping[str, Pending], MegalodonConfig], Mapping[str, Pending]]
    write: Callable[[Path, Mapping[str, Pending], MegalodonConfig], None]


def write_checkpoint(form: Format, folder: Path, tensors: Mapping[str, Pending], config: MegalodonConfig) -> None:
    """Write a checkpoint to a new folder, which is there when all of it is.

    Raises:
        FileExistsError: the folder is there.
        OSError: it cannot be written; nothing is left behind.
    """
    with new_folder(folder) as new:
        form.write(new, tensors, config)


def _jax_tensors(parameters: Mapping[str, Pending], config: MegalodonConfig) -> Mapping[str, Pending]:
    return parameters


def _write_jax(folder: Path, tensors: Mapping[str, Pending], config: MegalodonConfig) -> None:
    write(folder / WEIGHTS, tensors, {"format": "flax", "config": config.to_json()})
    write_text(folder / CONFIG, config.to_json())


def _hf_tensors(parameters: Mapping[str, Pending], config: MegalodonConfig) -> Mapping[str, Pending]:
    hf_json(config)  # refuses what megalodon-hf does not have
    return with_head(parameters, config)


def _write_hf(folder: Path, tensors: Mapping[str, Pending], config: MegalodonConfig) -> None:
    write_pretrained(folder, tensors, _HF_SHARD_BYTES)
    write_text(folder / CONFIG, hf_json(config))


FORMATS = {
    "jax": Format(_jax_tensors, _write_jax),
    "hf": Format(_hf_tensors, _write_hf),
    "original": Format(original_tensors, write_original),
}
