"""A GPT out of given arrays; a GPT with a shorter context."""

import dataclasses
from collections.abc import Callable

import jax

from megalodon_jax.architectures import abstract_model
from megalodon_jax.baselines.configs import GPTConfig
from megalodon_jax.baselines.gpt import GPT
from megalodon_jax.parameters import named_parameters


def assembled(config: GPTConfig, value: Callable[[str, jax.ShapeDtypeStruct], jax.Array]) -> GPT:
    """A model whose parameters are `value(name, shape)`."""
    model, shapes = abstract_model(config)
    return jax.tree.unflatten(jax.tree.structure(model), [value(name, like) for name, like in shapes.items()])


def crop_block_size(model: GPT, block_size: int) -> GPT:
    """The model for sequences of at most `block_size` tokens, without the other positions.

    Raises:
        ValueError: block_size not an int, not positive, or larger than that of the model.
    """
    most = model.config.block_size
    if isinstance(block_size, bool) or not isinstance(block_size, int) or not 1 <= block_size <= most:
        raise ValueError(f"block_size must be an int in [1, {most}], got {block_size!r}")
    held = named_parameters(model)
    config = dataclasses.replace(model.config, block_size=block_size)
    return assembled(config, lambda name, like: held[name][: like.shape[0]])
