"""The model of a run."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from megalodon_jax.architectures import MEGALODON, architectures
from megalodon_jax.config import MegalodonConfig
from megalodon_jax.parameters import named_parameters
from megalodon_jax.training.config import TrainingConfig
from megalodon_jax.training.settings import read_section

BYTES = 256  # the vocabulary where nothing else is said
_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")


def model_config(config: TrainingConfig) -> Any:
    """The `MegalodonConfig`, `LlamaConfig` or `GPTConfig` that the run's model section says.

    Raises:
        ValueError: an unknown key or a value that is not allowed, by its dotted name; a vocabulary too small for bytes,
            other outputs than tokens, or sequences longer than the model can be.
    """
    fields, kind = getattr(config, config.model), architectures()[config.model].config
    found = read_section(kind, _of_bytes(config.model) | fields, config.model + ".")
    for other, one in architectures().items():
        if getattr(config, other) and other != config.model:
            read_section(one.config, getattr(config, other), other + ".")
    separator = config.data.document_separator
    if separator is not None and separator >= found.vocab_size:
        raise ValueError(
            f"data.document_separator must be a token of the model, below {config.model}.vocab_size "
            f"{found.vocab_size}, got {separator}"
        )
    if config.data.tokens == "bytes" and found.vocab_size < BYTES:
        raise ValueError(f"{config.model}.vocab_size must be at least {BYTES} for bytes, got {found.vocab_size}")
    if found.effective_output_size != found.vocab_size:
        raise ValueError(
            f"{config.model}.output_size must be that of the vocabulary, {found.vocab_size}, or -1; got "
            f"{found.effective_output_size}"
        )
    samples, most = config.samples, getattr(found, "max_stream_len", None)  # a Megalodon has no longest sequence
    longest = max(config.data.sequence_length, samples.prompt_length + samples.length if samples.every else 0)
    if most is not None and longest > most:
        raise ValueError(
            f"a {config.model} of this section has at most {most} tokens; data.sequence_length, and the sum of "
            f"samples.prompt_length and samples.length, must not be above it, got {longest}"
        )
    return found


def build(config: TrainingConfig, key: jax.Array) -> eqx.Module:
    """A new model.

    Raises:
        ValueError: as in `model_config`.
    """
    sizes = model_config(config)
    model = architectures()[config.model].model(sizes, key=key)
    return model if config.output_std is None else with_output_std(model, config.output_std)


def with_output_std(model: Any, std: float) -> Any:
    """The model with the weight that gives the logits, the embedding when tied, scaled to that standard deviation.

    At 0.02 a model starts by guessing, with a loss near ln(vocabulary). At the scale of its other weights a tied
    Megalodon starts with confident errors, because a TimestepNorm over groups of g features leaves a standard deviation
    of about sqrt(g), not 1.
    """
    where = lambda m: m.model.embed.weight if m.lm_head is None else m.lm_head.weight  # noqa: E731
    weight = where(model)
    deviation = jnp.std(weight.astype(jnp.float32))
    return eqx.tree_at(where, model, (weight.astype(jnp.float32) * (std / deviation)).astype(weight.dtype))


def parameter_sizes(config: TrainingConfig) -> dict[str, int]:
    """How many parameters each array of the model has, by name; nothing is initialised."""

    def sizes(key):
        return named_parameters(build(config, key))

    return {name: leaf.size for name, leaf in eqx.filter_eval_shape(sizes, jax.random.key(0)).items()}


def multiplied_parameters(config: TrainingConfig) -> int:
    """Parameters without those of embeddings that are looked up alone; a tied one is multiplied with, as the head."""
    sizes = parameter_sizes(config)
    head = "lm_head.weight" if "lm_head.weight" in sizes else "model.embed.weight"
    return sum(size for name, size in sizes.items() if name == head or not name.endswith("embed.weight"))


def attention_products(config: TrainingConfig) -> int:
    """Multiplications of queries with keys and weights with values, for one token in the mean, in all layers."""
    sizes, length = model_config(config), config.data.sequence_length
    if isinstance(sizes, MegalodonConfig):
        width, length = sizes.z_dim + sizes.value_dim, min(length, sizes.chunk_size)
    else:
        width = 2 * sizes.num_heads * sizes.head_dim
    return sizes.num_layers * width * (length + 1) // 2


def _of_bytes(name: str) -> dict[str, Any]:
    """Defaults: a byte 0 is a byte like any other, and none begins or ends a text."""
    return {"vocab_size": BYTES} | (dict.fromkeys(_SPECIAL) if name == MEGALODON else {})
