"""Model and training settings that make the most of two minutes on two CPU cores with bytes."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.model import MegalodonForCausalLM

VOCABULARY = 256  # one token per byte

MODEL = MegalodonConfig(
    vocab_size=VOCABULARY, model_dim=128, num_layers=2, num_heads=1, z_dim=64, value_dim=192, ffn_hidden_dim=256,
    cema_ndim=8, chunk_size=128, norm_num_groups=32, pad_token_id=None, bos_token_id=None, eos_token_id=None,
)  # fmt: skip

# Many small steps of long windows beat few large ones while every byte is new.
BATCH_SIZE = 2
SEQUENCE_LENGTH = 512
LEARNING_RATE = 6e-3
MINUTES = 2.0
DEMO_FOLDER = Path("runs/demo")

_OUTPUT_STD = 0.02


def initial_model(config: MegalodonConfig, seed: int) -> MegalodonForCausalLM:
    """A new model that starts by guessing: a loss near ln(vocabulary) at step 0.

    The weight that gives the logits, the embedding when tied, is scaled to a standard deviation of 0.02. At the scale
    of the other weights it would start with confident errors, because a TimestepNorm over groups of g features leaves
    a standard deviation of about sqrt(g), not 1.

    Raises:
        ValueError: the layers do not accept the config.
    """
    model = MegalodonForCausalLM(config, key=jax.random.key(seed))
    weight = model.model.embed.weight if model.lm_head is None else model.lm_head.weight
    scaled = weight * (_OUTPUT_STD / float(jnp.std(weight.astype(jnp.float32))))
    return eqx.tree_at(lambda m: m.model.embed.weight if m.lm_head is None else m.lm_head.weight, model, scaled)
