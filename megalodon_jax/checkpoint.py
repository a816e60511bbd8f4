"""Native checkpoints: a folder with `model.safetensors` (names of `named_parameters`) and `config.json`.

Saving is atomic. Both files are written beside their final names and flushed to disk first; then

    model.safetensors.tmp -> model.safetensors      the commit: from here on the new checkpoint is the one that loads
    config.json.tmp       -> config.json

The weights carry the config they belong to in their metadata, so a crash between the two replacements is recognised:
loading then takes the config from `config.json.tmp`, and the next save first moves it to its place. Before the commit
nothing of the old checkpoint has changed.
"""

import os
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.files import flush, pending, read_tensors, write_pending
from megalodon_jax.model import MegalodonForCausalLM
from megalodon_jax.parameters import named_parameters

WEIGHTS = "model.safetensors"
CONFIG = "config.json"

Signature = dict[str, tuple[tuple[int, ...], str]]  # parameter name -> shape, dtype


def save_checkpoint(model: MegalodonForCausalLM, folder: str | os.PathLike) -> None:
    """Write `model` to `folder`, made if missing; a checkpoint already there is replaced in one step.

    Other files in the folder are left alone. One process may write to a folder at a time.

    Raises:
        ValueError: the parameters do not have the shapes and dtypes of `model.config`, so they could not be loaded.
        OSError: the folder cannot be written; the checkpoint that was there still loads.
    """
    folder, config = Path(folder), model.config.to_json()
    parameters = named_parameters(model)
    _require_match(f"cannot save to {folder}", _signature(parameters), _signature(_skeleton(model.config)[1]))
    tensors = {name: np.asarray(leaf) for name, leaf in parameters.items()}
    folder.mkdir(parents=True, exist_ok=True)
    new_weights, new_config = pending(folder / WEIGHTS), pending(folder / CONFIG)
    if _is_interrupted(folder):
        os.replace(new_config, folder / CONFIG)
    try:
        new_config.write_text(config, encoding="utf-8")
        flush(new_config)
        write_pending(folder / WEIGHTS, tensors, {"format": "flax", "config": config})
        os.replace(new_weights, folder / WEIGHTS)
    except BaseException:
        new_weights.unlink(missing_ok=True)
        new_config.unlink(missing_ok=True)
        raise
    flush(folder)
    os.replace(new_config, folder / CONFIG)
    flush(folder)


def load_checkpoint(folder: str | os.PathLike) -> MegalodonForCausalLM:
    """The model saved in `folder`, bit for bit, with all parameters on the default device.

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
    tensors, _ = read_tensors(weights)
    config = _read_config(folder)
    skeleton, shapes = _skeleton(config)
    _require_match(f"{weights} does not fit its config", _signature(tensors), _signature(shapes))
    return jax.tree.unflatten(jax.tree.structure(skeleton), [jnp.asarray(tensors[name]) for name in shapes])


def holds_checkpoint(folder: str | os.PathLike) -> bool:
    """Is there a checkpoint, or a part of one, in `folder`?"""
    return any((Path(folder) / name).exists() for name in (WEIGHTS, CONFIG))


def _read_config(folder: Path) -> MegalodonConfig:
    path = pending(folder / CONFIG) if _is_interrupted(folder) else folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {folder} has no {CONFIG}; give a folder that save_checkpoint wrote")
    try:
        return MegalodonConfig.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}; restore it, or save the checkpoint again") from error


def _is_interrupted(folder: Path) -> bool:
    """Do the weights in `folder` belong to a config that has not been moved to its place yet?"""
    waiting = pending(folder / CONFIG)
    if not waiting.is_file():
        return False
    try:
        with safe_open(folder / WEIGHTS, framework="np") as file:
            return (file.metadata() or {}).get("config", "").encode() == waiting.read_bytes()
    except (SafetensorError, OSError):
        return False


def _skeleton(config: MegalodonConfig) -> tuple[MegalodonForCausalLM, dict[str, jax.ShapeDtypeStruct]]:
    """The model of `config` with shapes for arrays, and those shapes by name; nothing is initialised."""

    def build(key):
        model = MegalodonForCausalLM(config, key=key)
        return model, list(named_parameters(model).items())  # a dict would come back sorted by name

    model, shapes = eqx.filter_eval_shape(build, jax.random.key(0))
    return model, dict(shapes)


def _signature(tensors) -> Signature:
    return {name: (tuple(a.shape), jnp.dtype(a.dtype).name) for name, a in tensors.items()}


def _require_match(what: str, given: Signature, expected: Signature) -> None:
    problems = [f"{name} is missing" for name in sorted(expected.keys() - given.keys())]
    problems += [f"{name} is not a parameter of this config" for name in sorted(given.keys() - expected.keys())]
    for name in sorted(expected.keys() & given.keys()):
        if given[name] != expected[name]:
            (shape, dtype), (wanted_shape, wanted_dtype) = given[name], expected[name]
            problems.append(f"{name} is {dtype}{list(shape)}, expected {wanted_dtype}{list(wanted_shape)}")
    if problems:
        rest = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{what}: {'; '.join(problems[:3])}{rest}; use the config and the weights of one model")
