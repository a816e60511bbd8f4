"""Feed-forward half of a block.

n = LayerNorm(x)      h = silu(fc1 n)   or, with swiglu,   silu(fc1 n) * fc3 n
y = residual + a * fc2 h,    a = 0.1 * 0.5^layer_id with rescale, else 1

In the original release a is a learned vector that begins there, linear layers have no bias, and the norm's gain is
stored minus one.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from megalodon_jax.config import Variant
from megalodon_jax.fused_layers import is_fused, layers_of_one
from megalodon_jax.layers.dropout import dropout, require_dropout_key, split
from megalodon_jax.layers.norms import BatchedLayerNorm
from megalodon_jax.ops import linear_3d, matmul_3d_weight
from megalodon_jax.utils import reinit_linear_weights
from reference.gating import activated, gated


class NormalizedFFN(eqx.Module):
    """Pre-norm feed-forward layer whose residual may start elsewhere than its input."""

    norm: BatchedLayerNorm
    fc1: eqx.nn.Linear
    fc2: eqx.nn.Linear
    fc3: eqx.nn.Linear | None
    rescale: Float32[Array, " D"] | None
    alpha: float | None = eqx.field(static=True)
    model_dim: int = eqx.field(static=True)
    ffn_hidden_dim: int = eqx.field(static=True)
    hidden_dropout: float = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    compute_dtype: Any = eqx.field(static=True)
    accum_dtype: Any = eqx.field(static=True)
    gemm_backend: str = eqx.field(static=True)

    def __init__(
        self,
        model_dim: int,
        ffn_hidden_dim: int,
        norm_eps: float = 1e-5,
        norm_affine: bool = True,
        swiglu: bool = False,
        rescale: bool = False,
        layer_id: int = 0,
        hidden_dropout: float = 0.0,
        dropout: float = 0.0,
        param_dtype=jnp.float32,
        compute_dtype=jnp.float32,
        accum_dtype=jnp.float32,
        gemm_backend: str = "default",
        *,
        variant: Variant = "hf",
        key,
    ):
        self.model_dim, self.ffn_hidden_dim = model_dim, ffn_hidden_dim
        self.hidden_dropout, self.dropout = hidden_dropout, dropout
        self.compute_dtype, self.accum_dtype = jnp.dtype(compute_dtype), jnp.dtype(accum_dtype)
        self.gemm_backend = gemm_backend
        original, scale = variant == "original", 0.1 * 0.5**layer_id
        self.alpha = scale if rescale and not original else None
        self.rescale = jnp.full(model_dim, scale, jnp.float32) if rescale and original else None
        self.norm = BatchedLayerNorm(model_dim, norm_eps, norm_affine, minus_one=original)
        key1, key2, key3 = jax.random.split(key, 3)
        linear = partial(eqx.nn.Linear, use_bias=not original, dtype=param_dtype)
        self.fc1 = linear(model_dim, ffn_hidden_dim, key=key1)
        self.fc2 = linear(ffn_hidden_dim, model_dim, key=key2)
        self.fc3 = linear(model_dim, ffn_hidden_dim, key=key3) if swiglu else None

    @classmethod
    def with_init(cls, *args, init_mode: str = "gaussian", key, **kwargs) -> "NormalizedFFN":
        """Build, then draw the linear layers by `init_mode`."""
        build_key, init_key = jax.random.split(key)
        return reinit_linear_weights(cls(*args, key=build_key, **kwargs), init_mode, init_key)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        residual_base: Float[Array, "B L D"] | None = None,
        deterministic: bool = True,
        key=None,
        *,
        scale: Float[Array, ""] | float | None = None,
    ) -> Float[Array, "B L D"]:
        """Add the layer, times `scale` (its own if None), to `residual_base` (x itself if None).

        Raises:
            ValueError: dropout without a key.
        """
        require_dropout_key((self.hidden_dropout, self.dropout), deterministic, key)
        hidden_key, out_key = split(key, 2)
        x = x.astype(self.compute_dtype)
        residual = x if residual_base is None else residual_base.astype(self.compute_dtype)
        normed = self.norm(x)
        other = None
        if self.fc3 is None:
            opening = self._product(self.fc1, normed)
        elif is_fused(self.gemm_backend, x):
            weights = (self.fc1.weight, self.fc3.weight)
            opening, other = layers_of_one(normed, weights, (None, self.fc3.bias))
        else:
            opening, other = self._product(self.fc1, normed), self._linear(self.fc3, normed)
        own = self.alpha if self.rescale is None else self.rescale
        scale = own if scale is None else scale
        ends = is_fused(self.gemm_backend, x) and scale is None and (deterministic or not self.dropout)
        base = residual if ends else None
        out = eqx.filter_checkpoint(NormalizedFFN._project)(self, opening, other, base, deterministic, hidden_key)
        if ends:
            return out
        out = dropout(out, self.dropout, deterministic, out_key)
        if scale is not None:
            out = out * jnp.asarray(scale, out.dtype)
        return residual + out

    def _project(self, opening, other, residual, deterministic: bool, key):
        """fc2 of the hidden units: made again in the backward, of what they are made of, instead of kept beside it."""
        bias = self.fc1.bias
        if not deterministic and self.hidden_dropout:
            hidden = activated(opening, bias) if other is None else gated(other, opening, bias)
            return self._linear(self.fc2, dropout(hidden, self.hidden_dropout, False, key), residual=residual)
        if other is None:
            return self._linear(self.fc2, opening, x_bias=bias, activation="silu", residual=residual)
        return self._linear(self.fc2, other, gate=opening, gate_bias=bias, residual=residual)

    def _product(self, layer: eqx.nn.Linear, x: jax.Array) -> jax.Array:
        return matmul_3d_weight(x, layer.weight, self.compute_dtype, self.accum_dtype, self.gemm_backend)

    def _linear(self, layer: eqx.nn.Linear, x: jax.Array, **options) -> jax.Array:
        return linear_3d(layer, x, self.compute_dtype, self.accum_dtype, self.gemm_backend, **options)
