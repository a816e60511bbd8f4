"""Streaming state, decoding and generation.

cache       the state of a stream: make, cut, pick rows
cache_file  write it to a file and read it back
sampling    a token from logits
decoding    one token per call
generation  a whole continuation in one compiled loop
"""

from megalodon_jax.inference.cache import index_cache, init_cache, trim_cache
from megalodon_jax.inference.cache_file import load_cache, save_cache
from megalodon_jax.inference.decoding import decode_step, generate_stream
from megalodon_jax.inference.generation import GenerationState, generate, generate_jit
from megalodon_jax.inference.sampling import Sampling, greedy_token, sample_token

__all__ = [
    "GenerationState",
    "Sampling",
    "decode_step",
    "generate",
    "generate_jit",
    "generate_stream",
    "greedy_token",
    "index_cache",
    "init_cache",
    "load_cache",
    "sample_token",
    "save_cache",
    "trim_cache",
]
