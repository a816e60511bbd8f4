"""Llama (arXiv 2302.13971): the baseline that Megalodon's paper compares itself with.

    attn(x) = o(attend(rotate(q x), rotate(k x), v x))      rotary pairs (j, j + K/2), angles in float32
    ffn(x)  = down(silu(gate x) * up x)

No layer has a bias. Linear layers begin uniform in +-1/sqrt(fan-in), embedding and untied head normal of std 0.02.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from megalodon_jax.baselines.attention import Tokens, attend
from megalodon_jax.baselines.backbone import Backbone, Block
from megalodon_jax.baselines.causal_lm import CausalLM
from megalodon_jax.baselines.configs import LlamaConfig
from megalodon_jax.baselines.layers import apply, linear
from megalodon_jax.baselines.norms import RMSNorm
from megalodon_jax.types import AttentionCache
from reference.normalized_rotary import rotate

_STD = 0.02


class LlamaAttention(eqx.Module):
    """Attention with rotary embedding."""

    q: eqx.nn.Linear
    k: eqx.nn.Linear
    v: eqx.nn.Linear
    o: eqx.nn.Linear
    config: LlamaConfig = eqx.field(static=True)

    def __init__(self, config: LlamaConfig, *, key):
        self.config = config
        width, keys = config.heads * config.dim_head, jax.random.split(key, 4)
        self.q, self.k, self.v = (_linear(config.dim, width, config, k) for k in keys[:3])
        self.o = _linear(width, config.dim, config, keys[3])

    def __call__(
        self, x: Float[Array, "B L D"], tokens: Tokens, cache: AttentionCache | None, deterministic: bool, key
    ) -> tuple[Float[Array, "B L D"], AttentionCache | None]:
        dtype, heads = self.config.compute_dtype, (*x.shape[:2], self.config.heads, self.config.dim_head)
        q, k, v = (apply(layer, x, dtype).reshape(heads) for layer in (self.q, self.k, self.v))
        q, k = (rotate(a, tokens.positions, self.config.rope_theta) for a in (q, k))
        o, cache = attend(q, k, v, tokens, cache)
        return apply(self.o, o.reshape(*x.shape[:2], -1), dtype), cache


class SwiGLU(eqx.Module):
    """Gated feed-forward layer."""

    gate: eqx.nn.Linear
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    dtype: Any = eqx.field(static=True)

    def __init__(self, config: LlamaConfig, *, key):
        self.dtype, keys = config.compute_dtype, jax.random.split(key, 3)
        self.gate, self.up = (_linear(config.dim, config.ffn_dim, config, k) for k in keys[:2])
        self.down = _linear(config.ffn_dim, config.dim, config, keys[2])

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        gate, up = (apply(layer, x, self.dtype).astype(jnp.float32) for layer in (self.gate, self.up))
        return apply(self.down, (jax.nn.silu(gate) * up).astype(self.dtype), self.dtype)


class Llama(CausalLM[LlamaConfig]):
    """Llama language model, its head tied to the embedding unless `config.tied_embedding` is False."""

    def __init__(self, config: LlamaConfig, *, key):
        embed_key, head_key, *keys = jax.random.split(key, config.depth + 2)
        blocks = [_block(config, key) for key in keys]
        embed, head = (_normal((config.vocab_size, config.dim), config, k) for k in (embed_key, head_key))
        norm = RMSNorm(config.dim, config.norm_eps)
        self.model = Backbone(eqx.nn.Embedding(weight=embed), None, tuple(blocks), norm, 0.0, config)
        self.lm_head = None if config.tied_embedding else linear(head)
        self.config = config


def _block(config: LlamaConfig, key) -> Block:
    attention_key, ffn_key = jax.random.split(key)
    norms = [RMSNorm(config.dim, config.norm_eps) for _ in range(2)]
    attention, ffn = LlamaAttention(config, key=attention_key), SwiGLU(config, key=ffn_key)
    return Block(norms[0], attention, norms[1], ffn, 0.0)


def _linear(fan_in: int, fan_out: int, config: LlamaConfig, key) -> eqx.nn.Linear:
    bound = 1 / math.sqrt(fan_in)
    weight = jax.random.uniform(key, (fan_out, fan_in), jnp.float32, -bound, bound)
    return linear(weight.astype(config.param_dtype))


def _normal(shape: tuple[int, int], config: LlamaConfig, key) -> Float[Array, "V D"]:
    return (_STD * jax.random.normal(key, shape, jnp.float32)).astype(config.param_dtype)
