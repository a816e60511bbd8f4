"""What a block keeps for its backward, by name of a policy (`MegalodonConfig.remat`).

none      everything that the backward reads, but SiLU, gates of the feed-forward half and the two feature norms,
          which are always made again
kernels   what the operations give and what their kernels keep; matmuls and feature norms run again, other kernels not
block     the input of the block; everything runs again

A fused matmul is a matmul: with `gemm_backend="fused"` both policies multiply again by its kernels, and round the
weights of the block again first, where "none" keeps the rounded ones.
"""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
from jax.ad_checkpoint import checkpoint_name

Remat = Literal["none", "kernels", "block"]
POLICIES = ("none", "kernels", "block")

_OF_OPERATIONS = "megalodon_operation"
_OF_KERNELS = (
    "timestep_norm_mean", "timestep_norm_var", "complex_ema_states", "chunked_attention_o", "chunked_attention_lse",
)  # fmt: skip


def of_operation(x: jax.Array) -> jax.Array:
    """x, as the result of an operation, which "kernels" keeps."""
    return checkpoint_name(x, _OF_OPERATIONS)


def rematerialised(function: Callable, policy: Remat) -> Callable:
    """The function of equinox modules and arrays, whose backward has no more to read than the policy says."""
    if policy == "none":
        return function
    names = jax.checkpoint_policies.save_only_these_names(_OF_OPERATIONS, *_OF_KERNELS)
    return eqx.filter_checkpoint(function, policy=names if policy == "kernels" else None)
