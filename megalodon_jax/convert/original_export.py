"""Checkpoints for the CUDA release: consolidated.pth, a pickle, with config.json and consolidate_config.json."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megalodon_jax.atomic import new_folder, write_text
from megalodon_jax.config import MegalodonConfig
from megalodon_jax.convert.config_files import CONFIG, original_json
from megalodon_jax.convert.consolidation import CONSOLIDATION, RELEASE_DTYPES
from megalodon_jax.convert.loading import rotary_tables
from megalodon_jax.convert.original import CONSOLIDATED
from megalodon_jax.convert.original_names import PRIORS, there
from megalodon_jax.convert.pretrained import with_dtype
from megalodon_jax.convert.sizes import ROTARY
from megalodon_jax.convert.state_dict import parameters_of, with_head
from megalodon_jax.convert.tensors import as_torch
from megalodon_jax.files import Pending
from megalodon_jax.model import MegalodonForCausalLM

_SHORT = {dtype: short for short, dtype in RELEASE_DTYPES.items()}


def save_original_checkpoint(model: MegalodonForCausalLM, folder: str | os.PathLike, dtype: Any = None) -> None:
    """Write a checkpoint that the CUDA release and `load_original_checkpoint` read; needs torch.

    Args:
        model: of variant "original".
        folder: must not be there yet.
        dtype: float32 or bfloat16, of jnp or torch, for everything but the sensitive parameters, which stay float32;
            config.param_dtype if None.

    Raises:
        ValueError: another variant, or an unsuitable dtype.
        FileExistsError: the folder is there.
        OSError: it cannot be written; nothing is left behind.
    """
    config = with_dtype(model.config, dtype)
    tensors = original_tensors(parameters_of(model, config.param_dtype), config)
    with new_folder(Path(folder)) as new:
        write_original(new, tensors, config)


def original_tensors(parameters: Mapping[str, Pending], config: MegalodonConfig) -> dict[str, Pending]:
    """The tensors of the release from our parameters, those that have none here included.

    Raises:
        ValueError: a model that the release does not have.
    """
    original_json(config)  # refuses what the release does not have
    found = {}
    for name, tensor in with_head(parameters, config).items():
        if name.endswith("cema.gamma_real"):
            tensor = _stacked(tensor, parameters[name.replace("_real", "_imag")])
        elif name.endswith("cema.omega"):
            tensor = _column(tensor)
        found.setdefault(there(name), tensor)
        if name.endswith((".timenorm.bias", "model.norm.bias")):
            found |= _priors(there(name).removesuffix("bias"), config.norm_num_groups)
    if (table := rotary_tables(config).get(ROTARY)) is not None:
        found[there(ROTARY)] = _constant(table)
    return found


def write_original(folder: Path, tensors: Mapping[str, Pending], config: MegalodonConfig) -> None:
    """Write `original_tensors` and the two configs to a folder."""
    import torch

    with (folder / CONSOLIDATED).open("wb") as file:
        torch.save({name: as_torch(tensor.make()) for name, tensor in tensors.items()}, file)
        file.flush()
        os.fsync(file.fileno())
    consolidation = {"model_parallel_size": 1, "dtype": _SHORT[config.param_dtype.name]}
    write_text(folder / CONSOLIDATION, json.dumps(consolidation, indent=2) + "\n")
    write_text(folder / CONFIG, original_json(config))


def _priors(prefix: str, groups: int) -> dict[str, Pending]:
    values = (np.zeros((), np.int64), np.zeros(groups, np.float32), np.zeros(groups, np.float32))
    return {prefix + name: _constant(value) for name, value in zip(PRIORS, values, strict=True)}


def _constant(value: np.ndarray) -> Pending:
    return Pending(value.shape, value.dtype, lambda: value)


def _stacked(real: Pending, imag: Pending) -> Pending:
    return Pending((*real.shape, 2), real.dtype, lambda: np.stack([real.make(), imag.make()], axis=-1))


def _column(tensor: Pending) -> Pending:
    return Pending((*tensor.shape, 1), tensor.dtype, lambda: tensor.make()[:, None])
