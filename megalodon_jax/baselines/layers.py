"""Linear layers of the baselines, under the dtype policy of `megalodon_jax.ops`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from megalodon_jax.ops import linear_3d


def linear(weight: Float[Array, "O D"], use_bias: bool = False) -> eqx.nn.Linear:
    """A linear layer of that weight, with a bias of zeros or none."""
    layer = eqx.filter_eval_shape(eqx.nn.Linear, weight.shape[1], weight.shape[0], use_bias, key=jax.random.key(0))
    bias = jnp.zeros(weight.shape[0], weight.dtype) if use_bias else None
    return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (weight, bias), is_leaf=lambda m: m is None)


def apply(layer: eqx.nn.Linear, x: Float[Array, "*batch D"], dtype: Any) -> Float[Array, "*batch O"]:
    """The layer with products in `dtype`, summed in float32."""
    return linear_3d(layer, x, dtype, jnp.float32)
