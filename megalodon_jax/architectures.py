"""Which models there are, under the names that configs and checkpoints call them."""

import json
from typing import Any, NamedTuple

import equinox as eqx
import jax

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.model import MegalodonForCausalLM
from megalodon_jax.parameters import named_parameters

MEGALODON = "megalodon"


class Architecture(NamedTuple):
    """A model and its config."""

    config: type[Any]
    model: type[Any]


def architectures() -> dict[str, Architecture]:
    """All of them, by name."""
    from megalodon_jax import baselines  # it is imported where one is asked for, not with the package

    return {
        MEGALODON: Architecture(MegalodonConfig, MegalodonForCausalLM),
        "llama": Architecture(baselines.LlamaConfig, baselines.Llama),
        "gpt": Architecture(baselines.GPTConfig, baselines.GPT),
    }


def config_from_json(text: str) -> Any:
    """The config that a model's `to_json` wrote: that of a Megalodon, unless "model" in it says another name.

    Raises:
        ValueError: no such model, or as in the config's `from_json`.
    """
    try:
        name = json.loads(text)["model"]
    except (ValueError, TypeError, KeyError):
        return MegalodonConfig.from_json(text)
    if name not in architectures():
        raise ValueError(f"model must be one of {', '.join(architectures())}, got {name!r}")
    return architectures()[name].config.from_json(text)


def abstract_model(config: Any) -> tuple[Any, dict[str, jax.ShapeDtypeStruct]]:
    """The model of a config with shapes for arrays, and those shapes by parameter name; nothing is initialised."""
    kind = MegalodonForCausalLM if isinstance(config, MegalodonConfig) else architectures()[config.model].model

    def build(key):
        model = kind(config, key=key)
        return model, list(named_parameters(model).items())  # a dict would come back sorted by name

    model, shapes = eqx.filter_eval_shape(build, jax.random.key(0))
    return model, dict(shapes)
