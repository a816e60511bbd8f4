"""GPT-2 (Radford et al., 2019), with nanoGPT's options.

    attn(x) = out(dropout-attend(q, k, v)),  (q, k, v) = qkv x
    ffn(x)  = down(gelu(up x))

Positions are learned, the head is the embedding. Weights begin normal of std 0.02, those of `out` and `down`, which add
to the residual stream 2 n_layer times, of std 0.02 / sqrt(2 n_layer).
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from megalodon_jax.baselines.attention import Tokens, attend
from megalodon_jax.baselines.backbone import Backbone, Block
from megalodon_jax.baselines.causal_lm import CausalLM
from megalodon_jax.baselines.configs import GPTConfig
from megalodon_jax.baselines.layers import apply, linear
from megalodon_jax.baselines.norms import LayerNorm
from megalodon_jax.types import AttentionCache

_STD = 0.02


class GPTAttention(eqx.Module):
    """Attention whose queries, keys and values are one projection, in this order."""

    qkv: eqx.nn.Linear
    out: eqx.nn.Linear
    config: GPTConfig = eqx.field(static=True)

    def __init__(self, config: GPTConfig, *, key):
        self.config = config
        qkv_key, out_key = jax.random.split(key)
        self.qkv = _linear(config.n_embd, 3 * config.n_embd, config, qkv_key)
        self.out = _linear(config.n_embd, config.n_embd, config, out_key, residual=True)

    def __call__(
        self, x: Float[Array, "B L D"], tokens: Tokens, cache: AttentionCache | None, deterministic: bool, key
    ) -> tuple[Float[Array, "B L D"], AttentionCache | None]:
        config, shape = self.config, x.shape[:2]
        qkv = apply(self.qkv, x, config.compute_dtype).reshape(*shape, 3, config.n_head, config.head_dim)
        q, k, v = (qkv[:, :, i] for i in range(3))
        o, cache = attend(q, k, v, tokens, cache, 0.0 if deterministic else config.dropout, key)
        return apply(self.out, o.reshape(*shape, -1), config.compute_dtype), cache


class MLP(eqx.Module):
    """Feed-forward layer of four times the width."""

    up: eqx.nn.Linear
    down: eqx.nn.Linear
    config: GPTConfig = eqx.field(static=True)

    def __init__(self, config: GPTConfig, *, key):
        self.config = config
        up_key, down_key = jax.random.split(key)
        self.up = _linear(config.n_embd, 4 * config.n_embd, config, up_key)
        self.down = _linear(4 * config.n_embd, config.n_embd, config, down_key, residual=True)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        dtype = self.config.compute_dtype
        hidden = jax.nn.gelu(apply(self.up, x, dtype).astype(jnp.float32), approximate=self.config.gelu == "tanh")
        return apply(self.down, hidden.astype(dtype), dtype)


class GPT(CausalLM[GPTConfig]):
    """GPT language model, its head tied to the embedding."""

    def __init__(self, config: GPTConfig, *, key):
        embed_key, position_key, *keys = jax.random.split(key, config.n_layer + 2)
        blocks = [_block(config, key) for key in keys]
        embed = _normal((config.vocab_size, config.n_embd), _STD, config, embed_key)
        positions = _normal((config.block_size, config.n_embd), _STD, config, position_key)
        embeddings = (eqx.nn.Embedding(weight=embed), eqx.nn.Embedding(weight=positions))
        self.model = Backbone(*embeddings, tuple(blocks), _norm(config), config.dropout, config)
        self.lm_head = None
        self.config = config


def _block(config: GPTConfig, key) -> Block:
    attention_key, mlp_key = jax.random.split(key)
    attention, mlp = GPTAttention(config, key=attention_key), MLP(config, key=mlp_key)
    return Block(_norm(config), attention, _norm(config), mlp, config.dropout)


def _norm(config: GPTConfig) -> LayerNorm:
    return LayerNorm(config.n_embd, config.norm_eps, config.bias)


def _linear(fan_in: int, fan_out: int, config: GPTConfig, key, *, residual: bool = False) -> eqx.nn.Linear:
    std = _STD / math.sqrt(2 * config.n_layer) if residual else _STD
    return linear(_normal((fan_out, fan_in), std, config, key), config.bias)


def _normal(shape: tuple[int, int], std: float, config: GPTConfig, key) -> Float[Array, "O D"]:
    return (std * jax.random.normal(key, shape, jnp.float32)).astype(config.param_dtype)
