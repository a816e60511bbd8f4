"""Megalodon in JAX and Equinox: config, model, streaming state, generation."""

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.inference import (
    generate,
    generate_jit,
    greedy_token,
    index_cache,
    init_cache,
    sample_token,
    trim_cache,
)
from megalodon_jax.model import MegalodonBlock, MegalodonForCausalLM, MegalodonModel
from megalodon_jax.types import AttentionCache, EMAState, LayerCache, ModelCache, NormState

__all__ = [
    "AttentionCache",
    "EMAState",
    "LayerCache",
    "MegalodonBlock",
    "MegalodonConfig",
    "MegalodonForCausalLM",
    "MegalodonModel",
    "ModelCache",
    "NormState",
    "generate",
    "generate_jit",
    "greedy_token",
    "index_cache",
    "init_cache",
    "sample_token",
    "trim_cache",
]
