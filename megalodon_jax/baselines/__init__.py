"""Models to compare Megalodon with, called, trained and sampled from as it is.

configs              sizes, switches and dtypes
llama, gpt           the models
backbone, causal_lm  what they have in common: the blocks; head and loss
attention            causal attention and its cache
norms, layers        norms and linear layers
gpt2                 weights of GPT-2 from files
assembling           a GPT out of given arrays, or with a shorter context
"""

from megalodon_jax.baselines.assembling import crop_block_size
from megalodon_jax.baselines.configs import GPTConfig, LlamaConfig
from megalodon_jax.baselines.gpt import GPT
from megalodon_jax.baselines.gpt2 import load_gpt2
from megalodon_jax.baselines.llama import Llama

__all__ = ["GPT", "GPTConfig", "Llama", "LlamaConfig", "crop_block_size", "load_gpt2"]
