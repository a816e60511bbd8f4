"""The ops, keyed by their public function."""

from pallas_kernels.chunked_attention import api as attention
from pallas_kernels.complex_ema import api as ema
from pallas_kernels.feature_norm import api as features
from pallas_kernels.fused_linear import api as linear
from pallas_kernels.linear_cross_entropy import api as cross_entropy
from pallas_kernels.normalized_rotary import api as rotary
from pallas_kernels.round_weights import api as rounding
from pallas_kernels.timestep_norm import api as norm

OPS = {
    ema.complex_ema: ema.OP,
    norm.timestep_norm: norm.OP,
    attention.chunked_attention: attention.OP,
    rotary.normalized_rotary: rotary.OP,
    linear.fused_linear: linear.OP,
    features.feature_norm: features.OP,
    rounding.round_weights: rounding.OP,
    cross_entropy.linear_cross_entropy: cross_entropy.OP,
}
