"""Native checkpoints: a folder with `model.safetensors` (names of `named_parameters`) and `config.json`.

Saving is atomic. Both files are written beside their final names and flushed to disk first; then

    model.safetensors.*.tmp -> model.safetensors    the commit: from here on the new checkpoint is the one that loads
    config.json.tmp         -> config.json

The weights carry the config they belong to in their metadata, so a crash between the two replacements is recognised:
loading then takes the config from `config.json.tmp`, and the next save first moves it to its place. Before the commit
nothing of the old checkpoint has changed.
"""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from safetensors import SafetensorError, safe_open

from megalodon_jax.architectures import abstract_model, config_from_json
from megalodon_jax.atomic import flush, leftovers, write_text
from megalodon_jax.files import Signature, TensorFile, write
from megalodon_jax.parameters import named_parameters

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_WAITING = CONFIG + ".tmp"


def save_checkpoint(model: Any, folder: str | os.PathLike) -> None:
    """Write `model` to `folder`, made if missing; a checkpoint already there is replaced in one step.

    The model is a Megalodon or a baseline. Other files in the folder are left alone. One process may write to a folder
    at a time.

    Raises:
        ValueError: the parameters do not have the shapes and dtypes of `model.config`, so they could not be loaded.
        OSError: the folder cannot be written; the checkpoint that was there still loads.
    """
    folder, config = Path(folder), model.config.to_json()
    parameters = named_parameters(model)
    _require_match(f"cannot save to {folder}", _signature(parameters), _signature(abstract_model(model.config)[1]))
    folder.mkdir(parents=True, exist_ok=True)
    if _is_interrupted(folder):
        os.replace(folder / _WAITING, folder / CONFIG)
    for killed in (folder / _WAITING, *leftovers(folder / WEIGHTS)):
        killed.unlink(missing_ok=True)
    try:
        write_text(folder / _WAITING, config)
        write(folder / WEIGHTS, parameters, {"format": "flax", "config": config})
    except BaseException:
        if not _is_interrupted(folder):
            (folder / _WAITING).unlink(missing_ok=True)
        raise
    os.replace(folder / _WAITING, folder / CONFIG)
    flush(folder)


def load_checkpoint(folder: str | os.PathLike) -> Any:
    """The model saved in `folder`, bit for bit, with all parameters on the default device.

    config.json says by "model" which one it is; without, it is a Megalodon.

    Raises:
        FileNotFoundError: no such folder, or one of the two files is not in it.
        ValueError: config.json that is not a valid config; weights that are not a whole safetensors file; a tensor
            missing, unknown, or of another shape or dtype than the config asks for.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"checkpoint {folder} is not a folder; give one that save_checkpoint wrote")
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(f"checkpoint {folder} has no {WEIGHTS}; give a folder that save_checkpoint wrote")
    file = TensorFile(weights)
    config = _read_config(folder)
    skeleton, shapes = abstract_model(config)
    _require_match(f"{weights} does not fit its config", file.signatures, _signature(shapes))
    return jax.tree.unflatten(jax.tree.structure(skeleton), [jnp.asarray(file.read(name)) for name in shapes])


def holds_checkpoint(folder: str | os.PathLike) -> bool:
    """Is there a checkpoint, or a part of one, in `folder`?"""
    return any((Path(folder) / name).exists() for name in (WEIGHTS, CONFIG))


def config_file(folder: Path) -> Path:
    """Where the config of the weights in a folder is: in config.json, unless a save was interrupted."""
    return folder / (_WAITING if _is_interrupted(folder) else CONFIG)


def _read_config(folder: Path) -> Any:
    path = config_file(folder)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {folder} has no {CONFIG}; give a folder that save_checkpoint wrote")
    try:
        return config_from_json(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}; restore it, or save the checkpoint again") from error


def _is_interrupted(folder: Path) -> bool:
    """Do the weights in `folder` belong to a config that has not been moved to its place yet?"""
    waiting, place = folder / _WAITING, folder / CONFIG
    if not waiting.is_file() or (place.is_file() and place.read_bytes() == waiting.read_bytes()):
        return False
    try:
        with safe_open(folder / WEIGHTS, framework="np") as file:
            return (file.metadata() or {}).get("config", "").encode() == waiting.read_bytes()
    except (SafetensorError, OSError):
        return False


def _signature(tensors) -> dict[str, Signature]:
    return {name: (tuple(a.shape), jnp.dtype(a.dtype).name) for name, a in tensors.items()}


def _require_match(what: str, given: dict[str, Signature], expected: dict[str, Signature]) -> None:
    problems = [f"{name} is missing" for name in sorted(expected.keys() - given.keys())]
    problems += [f"{name} is not a parameter of this config" for name in sorted(given.keys() - expected.keys())]
    for name in sorted(expected.keys() & given.keys()):
        if given[name] != expected[name]:
            (shape, dtype), (wanted_shape, wanted_dtype) = given[name], expected[name]
            problems.append(f"{name} is {dtype}{list(shape)}, expected {wanted_dtype}{list(wanted_shape)}")
    if problems:
        rest = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{what}: {'; '.join(problems[:3])}{rest}; use the config and the weights of one model")
