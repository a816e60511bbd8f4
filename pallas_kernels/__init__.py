"""Megalodon's ops for JAX: one function each, several implementations behind it.

complex_ema, timestep_norm, chunked_attention    the ops
normalized_rotary                                queries and keys of attention from their shared projection
normalized_rotary_attention                      both in one call
feature_norm                                     layer norm or RMS norm over the features of a token
fused_linear                                     a linear layer, with an activation in front and a residual behind
round_weights                                    weights in the dtype that fused_linear multiplies in, in one launch
linear_cross_entropy                             losses of an output head, with the gradients of their sum
explain                                          which implementation would run, and why not the others
kernels_in                                       the Pallas kernels in a lowered or compiled program
use_implementation, strict, compile_for          steer the choice inside a `with` block
use_tiles, Tiles                                 launch kernels with other tiles than the heuristic's
KernelUnavailable                                a named implementation cannot run
"""

from pallas_kernels._dispatch import KernelUnavailable
from pallas_kernels._explain import Explanation, explain
from pallas_kernels._kernels_in import kernels_in
from pallas_kernels._settings import compile_for, strict, use_implementation
from pallas_kernels._tiles import AttentionTiles, ElementTiles, LinearTiles, Tiles
from pallas_kernels._tuning import load_cache, use_tiles
from pallas_kernels.chunked_attention.api import chunked_attention
from pallas_kernels.complex_ema.api import complex_ema
from pallas_kernels.feature_norm.api import feature_norm
from pallas_kernels.fused_linear.api import fused_linear
from pallas_kernels.linear_cross_entropy.api import linear_cross_entropy
from pallas_kernels.normalized_rotary.api import normalized_rotary
from pallas_kernels.normalized_rotary_attention import normalized_rotary_attention
from pallas_kernels.round_weights.api import round_weights
from pallas_kernels.timestep_norm.api import timestep_norm

__all__ = [
    "AttentionTiles",
    "ElementTiles",
    "Explanation",
    "KernelUnavailable",
    "LinearTiles",
    "Tiles",
    "chunked_attention",
    "compile_for",
    "complex_ema",
    "explain",
    "feature_norm",
    "fused_linear",
    "kernels_in",
    "linear_cross_entropy",
    "normalized_rotary",
    "normalized_rotary_attention",
    "round_weights",
    "strict",
    "timestep_norm",
    "use_implementation",
    "use_tiles",
]

load_cache()
