"""Megalodon in JAX and Equinox: config, model, streaming state, generation."""

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.inference import (
    decode_step,
    generate,
    generate_jit,
    generate_stream,
    greedy_token,
    index_cache,
    init_cache,
    load_cache,
    sample_token,
    save_cache,
    trim_cache,
)
from megalodon_jax.model import MegalodonBlock, MegalodonForCausalLM, MegalodonModel
from megalodon_jax.padding import bucket_length, pad_batch
from megalodon_jax.presets import original_config
from megalodon_jax.types import AttentionCache, EMAState, GenerationState, LayerCache, ModelCache, NormState

__all__ = [
    "AttentionCache",
    "EMAState",
    "GenerationState",
    "LayerCache",
    "MegalodonBlock",
    "MegalodonConfig",
    "MegalodonForCausalLM",
    "MegalodonModel",
    "ModelCache",
    "NormState",
    "bucket_length",
    "decode_step",
    "generate",
    "generate_jit",
    "generate_stream",
    "greedy_token",
    "index_cache",
    "init_cache",
    "load_cache",
    "original_config",
    "pad_batch",
    "sample_token",
    "save_cache",
    "trim_cache",
]
