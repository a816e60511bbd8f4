"""Whole checkpoints, weights and config.json, of any of the three formats: where one comes from, and where it goes.

    jax          model.safetensors under our names, our config
    hf           model.safetensors or several files and an index, under megalodon-hf's names, which are ours
    original     consolidated.pth under the CUDA release's names; a pickle, and torch is needed

Tensors are read, compared, cast and written one by one; consolidated.pth is put together in memory.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalodon_jax.architectures import abstract_model
from megalodon_jax.atomic import new_folder, write_text
from megalodon_jax.checkpoint import config_file
from megalodon_jax.comparing import FUNCTION, differences
from megalodon_jax.config import MegalodonConfig
from megalodon_jax.convert.config_files import CONFIG, hf_json, read_config
from megalodon_jax.convert.loading import EMBEDDING, Tensors, checked
from megalodon_jax.convert.original import as_original, holds_release, is_part, open_original
from megalodon_jax.convert.original_export import original_tensors, write_original
from megalodon_jax.convert.original_names import there
from megalodon_jax.convert.pretrained import open_checkpoint
from megalodon_jax.convert.shards import INDEX, WEIGHTS, write_pretrained
from megalodon_jax.convert.sizes import require_fit
from megalodon_jax.convert.state_dict import with_head
from megalodon_jax.files import Pending, TensorFile, write

_HF_SHARD_BYTES = 5_000_000_000


def find_config(path: str | os.PathLike) -> Path:
    """Where the config of a checkpoint, a folder or a file in it, lies."""
    path = Path(path)
    return config_file(path if path.is_dir() else path.parent)


def open_parameters(
    path: str | os.PathLike, config: MegalodonConfig, allow_pickle_checkpoint: bool = False
) -> dict[str, Pending]:
    """Every parameter of a model of `config` from a checkpoint of any format; none is read before it is made.

    The format is that of the names in the files. A folder with files of the release and others is one of the others.

    Raises:
        FileNotFoundError, KeyError, ValueError, RuntimeError: as in `load_from_pretrained`, `load_original_checkpoint`;
            one of our files, whose own config is of another function.
    """
    tensors = _open(Path(path), config, allow_pickle_checkpoint)
    require_fit(tensors.signatures, config)  # first: it takes time to trace a model of a wrong size
    if isinstance(tensors, TensorFile):
        _require_own(tensors, config)
    return checked(abstract_model(config)[1], tensors, config)


def _open(path: Path, config: MegalodonConfig, allow_pickle_checkpoint: bool) -> Tensors:
    others = any((path / name).is_file() for name in (WEIGHTS, INDEX))
    if is_part(path) or (holds_release(path) and not others):
        return open_original(path, config, allow_pickle_checkpoint)
    tensors = open_checkpoint(path, allow_pickle_checkpoint)
    return as_original([tensors], config) if there(EMBEDDING) in tensors.signatures else tensors


def _require_own(file: TensorFile, config: MegalodonConfig) -> None:
    """Compare the config with the one that our own files carry."""
    if "config" not in file.metadata:
        return
    try:
        own = MegalodonConfig.from_json(file.metadata["config"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file.path} carries a config that cannot be read here: {error}") from error
    if wrong := differences(config, own, FUNCTION):
        said = (f"{name} is {given} in the config and {kept} in the weights" for name, (given, kept) in wrong.items())
        raise ValueError(f"{'; '.join(said)} ({file.path}); give the config they were saved with")


@dataclass(frozen=True)
class Format:
    """Of a checkpoint: which tensors it holds, and how they and the config become files of a folder.

    Attributes:
        tensors: from the parameters of a model and its config; ValueError if the format has no such model.
        write: to a folder, given those tensors and the config.
    """

    tensors: Callable[[Mapping[str, Pending], MegalodonConfig], Mapping[str, Pending]]
    write: Callable[[Path, Mapping[str, Pending], MegalodonConfig], None]


def write_checkpoint(
    form: Format, folder: Path, tensors: Mapping[str, Pending], config: MegalodonConfig
) -> dict[str, Any]:
    """Write a checkpoint to a new folder, which is there when all of it is; give the fields that it has no place for.

    Raises:
        FileExistsError: the folder is there.
        OSError: it cannot be written; nothing is left behind.
    """
    with new_folder(folder) as new:
        form.write(new, tensors, config)
        return _left_out(new, config)


def _left_out(folder: Path, config: MegalodonConfig) -> dict[str, Any]:
    kept = dataclasses.replace(read_config(folder / CONFIG, "float32"), param_dtype=config.param_dtype)
    return {name: value for name, (value, _) in differences(config, kept).items()}


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
