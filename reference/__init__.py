"""Pure-jnp reference implementations of the ops: what runs on CPU and wherever a kernel refuses.

`reference.oracle_numpy` holds the float64 step-by-step oracle, `reference.oracle_torch` (needs torch) an independent
PyTorch model; neither is imported from here.
"""

from reference.chunked_attention import chunked_attention
from reference.complex_ema import complex_ema
from reference.feature_norm import feature_norm
from reference.fused_linear import fused_linear
from reference.linear_cross_entropy import linear_cross_entropy
from reference.normalized_rotary import normalized_rotary
from reference.round_weights import round_weights
from reference.timestep_norm import timestep_norm

__all__ = [
    "chunked_attention",
    "complex_ema",
    "feature_norm",
    "fused_linear",
    "linear_cross_entropy",
    "normalized_rotary",
    "round_weights",
    "timestep_norm",
]
