"""Cached decoding as one would write it at first: a token at a time in plain JAX, chunk-local cache.

The state is that of the equations and nothing else; keys and values lie in an array of one chunk, of which a query
sees the slots up to its own. A prompt is a `lax.scan` over its tokens.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from megalodon_jax import MegalodonForCausalLM


class LayerState(NamedTuple):
    """What a layer carries: mean and variance of its norm, EMA state, keys and values of the chunk."""

    mean: jax.Array
    var: jax.Array
    h: jax.Array
    k: jax.Array
    v: jax.Array


class State(NamedTuple):
    """Of the model: position of the next token, layers, mean and variance of the last norm."""

    position: jax.Array
    layers: tuple[LayerState, ...]
    mean: jax.Array
    var: jax.Array


def fresh(model: MegalodonForCausalLM, batch: int) -> State:
    """Before the first token."""
    c = model.config
    groups = jnp.zeros((batch, c.norm_num_groups)), jnp.ones((batch, c.norm_num_groups))
    slots = (batch, c.chunk_size, c.num_heads)
    layer = LayerState(
        *groups,
        jnp.zeros((batch, c.model_dim, c.cema_ndim), jnp.complex64),
        jnp.zeros((*slots, c.head_dim)),
        jnp.zeros((*slots, c.value_head_dim)),
    )
    return State(jnp.zeros((), jnp.int32), (layer,) * c.num_layers, *groups)


def prefill(model: MegalodonForCausalLM, ids, state: State) -> tuple[jax.Array, State]:
    """Logits [B, L, V] of the tokens ids [B, L], one after the other."""

    def one(state: State, token):
        logits, state = step(model, token, state)
        return state, logits

    state, logits = lax.scan(one, state, ids.T)
    return logits.transpose(1, 0, 2), state


def step(model: MegalodonForCausalLM, token, state: State) -> tuple[jax.Array, State]:
    """Logits [B, V] after one more token [B] of each row."""
    x, layers = model.model.embed.weight[token], []
    for layer, held in zip(model.model.layers, state.layers, strict=True):
        middle, held = _attention_half(layer.attn, x, held, state.position)
        x = x + feed_forward(layer.ffn, x + middle)
        layers.append(held)
    x, mean, var = _norm(model.model.norm, x, state.mean, state.var, state.position)
    head = model.model.embed.weight if model.lm_head is None else model.lm_head.weight
    return x @ head.T, State(state.position + 1, tuple(layers), mean, var)


def _attention_half(attn: Any, x, held: LayerState, position):
    batch, heads = x.shape[0], attn.num_heads
    t, mean, var = _norm(attn.timenorm, x, held.mean, held.var, position)
    p, q, gamma = attn.cema._coeffs()
    h = q * held.h + (p * t[..., None]).astype(jnp.complex64)
    smooth = jnp.real(gamma * h).sum(-1) + attn.cema.omega * t
    m = unit_rms(smooth, attn.norm_eps) * (1.0 + attn.rmsnorm.gamma)
    chunk = held.k.shape[1]
    slot = position % chunk
    query, key = queries_keys(attn, m, slot)
    value = jax.nn.silu(linear(attn.wv, t)).reshape(batch, heads, -1)
    k, v = held.k.at[:, slot].set(key), held.v.at[:, slot].set(value)
    scores = jnp.where(jnp.arange(chunk) <= slot, jnp.einsum("bhd,bshd->bhs", query, k), -jnp.inf)
    o = jnp.einsum("bhs,bshe->bhe", jax.nn.softmax(scores), v).reshape(batch, -1)
    y = linear(attn.wh1, m) + linear(attn.wh2, o * jax.nn.silu(linear(attn.wr, m)))
    return y, LayerState(mean, var, h, k, v)


def queries_keys(attn: Any, m, position) -> list[jax.Array]:
    """Of m [..., D], both [..., H, K], rotated to a position that broadcasts against them."""
    heads = attn.num_heads
    z = unit_rms(linear(attn.wz, m).reshape(*m.shape[:-1], heads, -1), attn.norm_eps)
    scale = (1.0 + attn.gamma.reshape(2, heads, -1)) / math.sqrt(attn.head_dim)
    shift = attn.beta.reshape(2, heads, -1)
    return [_turned(z * scale[i] + shift[i], position, attn.inner.rotary.inv_freq) for i in (0, 1)]


def feed_forward(ffn: Any, x):
    """Of x [..., D], without the residual."""
    centred = x - x.mean(-1, keepdims=True)
    n = unit_rms(centred, ffn.norm.eps) * ffn.norm.weight + ffn.norm.bias
    return linear(ffn.fc2, jax.nn.silu(linear(ffn.fc1, n)))


def _norm(norm: Any, x, mean, var, position):
    grouped = x.reshape(x.shape[0], norm.num_groups, -1)
    u, n = grouped.mean(-1), (position + 1).astype(jnp.float32)
    new = jnp.where(position == 0, u, mean + (u - mean) / n)
    spread = jnp.where(position == 0, 0.0, (u - mean) * (u - new))
    var = jnp.maximum((jnp.maximum(n - 1.0, 1.0) * var + spread) / n, 1e-6)
    y = ((grouped - new[..., None]) * lax.rsqrt(var + norm.eps)[..., None]).reshape(x.shape)
    return y * (1.0 + norm.weight) + norm.bias, new, var


def _turned(z, position, inv_freq):
    angle = position.astype(jnp.float32) * inv_freq
    a, b = jnp.split(z, 2, axis=-1)
    return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1)


def unit_rms(x, eps):
    """x / sqrt(mean(x^2) + eps)."""
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + eps)


def linear(layer: Any, x):
    """W x + b."""
    return x @ layer.weight.T + layer.bias
