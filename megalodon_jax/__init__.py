"""Megalodon in JAX and Equinox: config, model, streaming state."""

from megalodon_jax.config import MegalodonConfig
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
]
