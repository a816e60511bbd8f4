"""Attention half of a block.

t  = TimestepNorm(x)         m = dropout(RMSNorm(ComplexEMA(t)))
z  = Wz m, per head z / sqrt(mean(z^2) + eps)
q  = z (1 + gamma[0]) / sqrt(d) + beta[0]        k = z (1 + gamma[1]) / sqrt(d) + beta[1]
v  = silu(Wv t)              r = silu(Wr m)
y  = x + dropout(Wh1 m + Wh2 dropout(attention(q, k, v) * r))
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from megalodon_jax.config import Variant
from megalodon_jax.fused_layers import is_fused, layers_of_one
from megalodon_jax.layers.chunked_attention import ChunkedAttention, attention_multi_chunk, attention_single_chunk
from megalodon_jax.layers.complex_ema import Coefficients, ComplexEMA
from megalodon_jax.layers.dropout import dropout, require_dropout_key, split
from megalodon_jax.layers.feedforward import NormalizedFFN
from megalodon_jax.layers.norms import RMSNorm
from megalodon_jax.layers.timestep_norm import TimestepNorm, time_norm
from megalodon_jax.ops import apart, linear_3d, matmul_3d_weight
from megalodon_jax.remat import of_operation
from megalodon_jax.types import EMAState, LayerCache
from megalodon_jax.utils import reinit_linear_weights
from reference.dropout import DropoutMode
from reference.gating import Gate

__all__ = [
    "ChunkedAttention",
    "MegalodonAttention",
    "NormalizedFFN",
    "attention_multi_chunk",
    "attention_single_chunk",
]


class MegalodonAttention(eqx.Module):
    """Gated attention over EMA-smoothed, time-normalised inputs, with its residual."""

    timenorm: TimestepNorm
    cema: ComplexEMA
    rmsnorm: RMSNorm
    inner: ChunkedAttention
    wz: eqx.nn.Linear
    wv: eqx.nn.Linear
    wr: eqx.nn.Linear
    wh1: eqx.nn.Linear
    wh2: eqx.nn.Linear
    gamma: Float[Array, "2 Z"]
    beta: Float[Array, "2 Z"]
    num_heads: int = eqx.field(static=True)
    head_dim: int = eqx.field(static=True)
    value_head_dim: int = eqx.field(static=True)
    norm_eps: float = eqx.field(static=True)
    dropout: float = eqx.field(static=True)
    hidden_dropout: float = eqx.field(static=True)
    compute_dtype: Any = eqx.field(static=True)
    accum_dtype: Any = eqx.field(static=True)
    gemm_backend: str = eqx.field(static=True)

    def __init__(
        self,
        model_dim: int,
        z_dim: int,
        value_dim: int,
        num_heads: int,
        cema_ndim: int,
        chunk_size: int,
        norm_num_groups: int,
        norm_eps: float = 1e-5,
        norm_affine: bool = True,
        rope_base: float = 10000.0,
        max_cache_len: int | None = None,
        cache_unbounded: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        hidden_dropout: float = 0.0,
        param_dtype=jnp.float32,
        compute_dtype=jnp.float32,
        accum_dtype=jnp.float32,
        gemm_backend: str = "default",
        *,
        variant: Variant = "hf",
        dropout_mode: DropoutMode = "post_softmax",
        key,
    ):
        self.num_heads, self.head_dim, self.value_head_dim = num_heads, z_dim // num_heads, value_dim // num_heads
        self.norm_eps, self.dropout, self.hidden_dropout = norm_eps, dropout, hidden_dropout
        self.compute_dtype, self.accum_dtype = jnp.dtype(compute_dtype), jnp.dtype(accum_dtype)
        self.gemm_backend = gemm_backend
        keys, original = jax.random.split(key, 9), variant == "original"
        self.timenorm = time_norm(model_dim, norm_num_groups, norm_eps, norm_affine, variant)
        self.cema = ComplexEMA(model_dim, cema_ndim, key=keys[0])
        self.rmsnorm = RMSNorm(model_dim, norm_eps, norm_affine)
        self.inner = ChunkedAttention(
            num_heads, self.head_dim, self.value_head_dim, chunk_size,
            rope_base, max_cache_len, cache_unbounded, attention_dropout, accum_dtype,
            interleaved=original, dropout_mode=dropout_mode,
        )  # fmt: skip
        self.wz = eqx.nn.Linear(model_dim, z_dim, dtype=param_dtype, key=keys[2])
        self.wv = eqx.nn.Linear(model_dim, value_dim, dtype=param_dtype, key=keys[3])
        self.wr = eqx.nn.Linear(model_dim, value_dim, dtype=param_dtype, key=keys[4])
        self.wh1 = eqx.nn.Linear(model_dim, model_dim, dtype=param_dtype, key=keys[5])
        self.wh2 = eqx.nn.Linear(value_dim, model_dim, use_bias=not original, dtype=param_dtype, key=keys[6])
        self.gamma = jnp.zeros((2, z_dim), jnp.float32)
        self.beta = jnp.zeros((2, z_dim), jnp.float32)

    @classmethod
    def with_init(cls, *args, init_mode: str = "gaussian", key, **kwargs) -> "MegalodonAttention":
        """Build, then draw the linear layers by `init_mode`."""
        build_key, init_key = jax.random.split(key)
        return reinit_linear_weights(cls(*args, key=build_key, **kwargs), init_mode, init_key)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        cache: LayerCache | None = None,
        mask: Bool[Array, "B L"] | None = None,
        return_cache: bool = False,
        deterministic: bool = True,
        key=None,
        *,
        segment_ids: Int[Array, "B L"] | None = None,
        position_ids: Int[Array, "B L"] | None = None,
        coefficients: Coefficients | None = None,
    ) -> tuple[Float[Array, "B L D"], LayerCache | None]:
        """y = x + attention half, and the new cache if asked for; `coefficients` of the EMA if formed already.

        With cache or `return_cache` a mask says which tokens there are: those of a row, then padding behind them, which
        leaves the row's state as it is. Without, masked inputs enter the EMA as zero and the state decays.

        Raises:
            ValueError: dropout without a key, or a cache that does not fit x.
        """
        require_dropout_key((self.dropout, self.hidden_dropout), deterministic, key)
        attention_key, mean_key, gate_key, out_key = split(key, 4)
        # As a document the tokens end where the padding begins, and the EMA's state is that after the last of them.
        streams = cache is not None or return_cache
        ema_segments = mask.astype(jnp.int32) if streams and mask is not None else segment_ids
        cache = LayerCache() if cache is None else cache
        x = x.astype(self.compute_dtype)
        normed, norm_state = self.timenorm(x, cache.norm, mask, segment_ids=segment_ids)
        normed = of_operation(normed)
        h_init = None if cache.ema is None else cache.ema.h
        smooth, h = self.cema(normed, h_init, return_cache, mask, segment_ids=ema_segments, coefficients=coefficients)
        mean = self.rmsnorm(of_operation(smooth))
        mean = dropout(mean, self.hidden_dropout, deterministic, mean_key)

        fused, one = is_fused(self.gemm_backend, x), x.shape[1] == 1
        base = x if fused and (deterministic or not self.dropout) else None
        if fused:
            weights = (self.wz.weight, self.wr.weight, self.wh1.weight)
            z, opening, begins = layers_of_one(mean, weights, (None, None, self.wh1.bias), (None, None, base))
        else:  # the products of one token may be merged: nothing is copied for a kernel
            z, opening = (
                self._product(layer, mean if one else apart(mean, number))
                for number, layer in ((1, self.wz), (2, self.wr))
            )
            begins = None
        v = self._heads(self._product(self.wv, normed))
        gate = (self._heads(opening), self._bias(self.wr))
        opens = fused and (deterministic or not self.hidden_dropout)  # else the gate is the attention's own
        out, attention_cache, position = self.inner.from_projection(
            self._heads(z), v, self._of_heads(self.gamma), self._of_heads(self.beta), self.norm_eps,
            cache.attn, mask, return_cache, deterministic, attention_key,
            bias=self._bias(self.wz), gate=Gate(self._bias(self.wv), *(() if opens else gate)),
            segment_ids=segment_ids, position_ids=position_ids,
            scale_offset=1.0, scale_factor=1.0 / math.sqrt(self.head_dim),
        )  # fmt: skip
        out = dropout(of_operation(out).reshape(*out.shape[:2], -1), self.hidden_dropout, deterministic, gate_key)
        begins = self._linear(self.wh1, mean) if begins is None else begins
        front = {"gate": opening, "gate_bias": self.wr.bias} if opens else {}
        y = self._linear(self.wh2, out, residual=begins, number=None if one else 3, **front)
        y = y if base is not None else dropout(y, self.dropout, deterministic, out_key) + x
        if not return_cache:
            return y, None
        assert h is not None
        return y, LayerCache(attention_cache, norm_state, EMAState(h), position)

    def _of_heads(self, parameter: Float[Array, "2 Z"]) -> Float32[Array, "2 H K"]:
        return parameter.astype(jnp.float32).reshape(2, self.num_heads, self.head_dim)

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.num_heads, -1)

    def _bias(self, layer: eqx.nn.Linear) -> Float32[Array, "H F"] | None:
        return None if layer.bias is None else layer.bias.astype(jnp.float32).reshape(self.num_heads, -1)

    def _product(self, layer: eqx.nn.Linear, x: jax.Array) -> jax.Array:
        return matmul_3d_weight(x, layer.weight, self.compute_dtype, self.accum_dtype, self.gemm_backend)

    def _linear(self, layer: eqx.nn.Linear, x: jax.Array, **options: Any) -> jax.Array:
        return linear_3d(layer, x, self.compute_dtype, self.accum_dtype, self.gemm_backend, **options)
