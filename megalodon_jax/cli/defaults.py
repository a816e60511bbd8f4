"""Model and training settings that make the most of two minutes on two CPU cores with bytes."""

from pathlib import Path

import jax

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.model import MegalodonForCausalLM
from megalodon_jax.training.config import Optimizer
from megalodon_jax.training.models import with_output_std

VOCABULARY = 256  # one token per byte

MODEL = MegalodonConfig(
    vocab_size=VOCABULARY, model_dim=128, num_layers=2, num_heads=1, z_dim=64, value_dim=192, ffn_hidden_dim=256,
    cema_ndim=8, chunk_size=128, norm_num_groups=32, pad_token_id=None, bos_token_id=None, eos_token_id=None,
)  # fmt: skip

# Many small steps of long windows beat few large ones while every byte is new.
BATCH_SIZE = 2
SEQUENCE_LENGTH = 512
LEARNING_RATE = 6e-3
OPTIMIZER = Optimizer(beta2=0.98)  # runs of a few hundred steps have no use for the longer memory of 0.999
MINUTES = 2.0
DEMO_FOLDER = Path("runs/demo")

_OUTPUT_STD = 0.02


def initial_model(config: MegalodonConfig, seed: int) -> MegalodonForCausalLM:
    """A new model that starts by guessing: a loss near ln(vocabulary) at step 0.

    Raises:
        ValueError: the layers do not accept the config.
    """
    return with_output_std(MegalodonForCausalLM(config, key=jax.random.key(seed)), _OUTPUT_STD)
