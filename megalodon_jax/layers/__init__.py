"""Layers of the model, each usable on its own."""

from megalodon_jax.layers.attention import (
    ChunkedAttention,
    MegalodonAttention,
    NormalizedFFN,
    attention_multi_chunk,
    attention_single_chunk,
)
from megalodon_jax.layers.complex_ema import ComplexEMA
from megalodon_jax.layers.norms import RMSNorm
from megalodon_jax.layers.rotary import RotaryEmbedding
from megalodon_jax.layers.timestep_norm import TimestepNorm

__all__ = [
    "ChunkedAttention",
    "ComplexEMA",
    "MegalodonAttention",
    "NormalizedFFN",
    "RMSNorm",
    "RotaryEmbedding",
    "TimestepNorm",
    "attention_multi_chunk",
    "attention_single_chunk",
]
