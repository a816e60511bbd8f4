"""What the device of a run can compute."""

import dataclasses
import re
import warnings
from typing import Any

import jax
import jax.numpy as jnp

from megalodon_jax.training import models
from megalodon_jax.training.config import TrainingConfig

_FIRST_WITH_BFLOAT16 = 8  # compute capability of NVIDIA's Ampere


def has_bfloat16(device: Any) -> bool:
    """NVIDIA GPUs from compute capability 8.0 on compute in bfloat16, and so does every other kind of device."""
    capability = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))
    return capability is None or int(capability[1]) >= _FIRST_WITH_BFLOAT16


def with_supported_dtype(config: TrainingConfig) -> TrainingConfig:
    """The config, computed in float32 where it says bfloat16 and the device has none; a warning says so."""
    device = _device()
    if jnp.dtype(models.model_config(config).compute_dtype) != jnp.bfloat16 or has_bfloat16(device):
        return config
    warnings.warn(
        f"{device.device_kind} does not compute in bfloat16: {config.model}.compute_dtype is float32 in this run",
        stacklevel=2,
    )
    section = getattr(config, config.model) | {"compute_dtype": "float32"}
    return dataclasses.replace(config, **{config.model: section})


def _device() -> Any:
    return jax.devices()[0]
