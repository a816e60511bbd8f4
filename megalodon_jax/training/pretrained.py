"""A run that begins with GPT-2's weights: its sizes are theirs, its context may be shorter."""

import dataclasses
import json

from megalodon_jax.baselines import GPT, crop_block_size, load_gpt2
from megalodon_jax.baselines.gpt2 import gpt2_config
from megalodon_jax.training import models
from megalodon_jax.training.config import TrainingConfig

_CHOSEN = ("dropout", "param_dtype", "compute_dtype")


def with_sizes(config: TrainingConfig) -> TrainingConfig:
    """The config whose section `gpt` says what the weights in `init_weights` are.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: it is of another model, or the section says something else.
    """
    assert config.init_weights is not None
    fields = json.loads(gpt2_config(config.init_weights).to_json())
    del fields["model"]
    for name, value in config.gpt.items():
        if name == "block_size" and isinstance(value, int) and value <= fields[name]:
            continue  # the model is cropped
        if name in fields and name not in _CHOSEN and value != fields[name]:
            raise ValueError(
                f"gpt.{name} is {value!r}, and {fields[name]!r} in {config.init_weights}; leave it out"
                + (", or make it smaller" if name == "block_size" else "")
            )
    return dataclasses.replace(config, gpt=fields | config.gpt)


def load_pretrained(config: TrainingConfig) -> GPT:
    """The model, with the weights in `init_weights`.

    Raises:
        FileNotFoundError, KeyError, ValueError: as in `load_gpt2`.
    """
    assert config.init_weights is not None
    sizes = models.model_config(config)
    options = {name: getattr(sizes, name) for name in _CHOSEN}
    return crop_block_size(load_gpt2(config.init_weights, **options), sizes.block_size)
