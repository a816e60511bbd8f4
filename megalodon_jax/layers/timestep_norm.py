"""TimestepNorm as a module: parameters and state types around `pallas_kernels.timestep_norm`."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from megalodon_jax.config import Variant
from megalodon_jax.types import NormState
from pallas_kernels import timestep_norm
from reference.timestep_norm import VARIANCE_FLOOR, Statistics

__all__ = ["VARIANCE_FLOOR", "TimestepNorm"]


class TimestepNorm(eqx.Module):
    """Cumulative group norm over time; gain stored minus one.

    `statistics` "token_mean" are megalodon-hf's, "all_features" those of the original release.

    Raises:
        ValueError: num_features not divisible by num_groups.
    """

    weight: Float32[Array, " D"] | None
    bias: Float32[Array, " D"] | None
    num_features: int = eqx.field(static=True)
    num_groups: int = eqx.field(static=True)
    group_size: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    affine: bool = eqx.field(static=True)
    statistics: Statistics = eqx.field(static=True)

    def __init__(
        self,
        num_features: int,
        num_groups: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        statistics: Statistics = "token_mean",
        key=None,
    ):
        if num_features % num_groups:
            raise ValueError(f"num_features {num_features} must be divisible by num_groups {num_groups}")
        self.num_features, self.num_groups, self.eps, self.affine = num_features, num_groups, eps, affine
        self.group_size, self.statistics = num_features // num_groups, statistics
        self.weight = jnp.zeros(num_features, jnp.float32) if affine else None
        self.bias = jnp.zeros(num_features, jnp.float32) if affine else None

    def __call__(
        self,
        x: Float[Array, "B L D"],
        state: NormState | None = None,
        mask: Bool[Array, "B L"] | None = None,
        *,
        segment_ids: Int[Array, "B L"] | None = None,
    ) -> tuple[Float[Array, "B L D"], NormState]:
        """Normalised x and the state after the last valid token.

        Raises:
            TypeError: float16 input.
            ValueError: wrong number of features.
        """
        if x.shape[-1] != self.num_features:
            raise ValueError(f"TimestepNorm expects {self.num_features} features, got shape {x.shape}")
        y, new_state = timestep_norm(
            x,
            _float32(self.weight),
            _float32(self.bias),
            num_groups=self.num_groups,
            eps=self.eps,
            statistics=self.statistics,
            state=None if state is None else (state.count, state.mean, state.var),
            mask=mask,
            segment_ids=segment_ids,
            return_state=True,
        )
        return y, NormState(*new_state)


def time_norm(dim: int, groups: int, eps: float, affine: bool, variant: Variant) -> TimestepNorm:
    """The norm over time of a variant of the model; that of the original release always has gain and bias."""
    if variant == "original":
        return TimestepNorm(dim, groups, eps, statistics="all_features")
    return TimestepNorm(dim, groups, eps, affine)


def _float32(a):
    return None if a is None else a.astype(jnp.float32)
