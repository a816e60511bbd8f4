"""The model as one would write it at first, for a whole sequence: plain JAX over the parameters of ours, in float32.

- The EMA is an FFT convolution with every power of q formed directly; its last state is a sum over those powers.
- Attention is dense over the whole sequence under a mask that is block-diagonal and causal.
- Statistics of the norms are cumulative sums; the loss is formed from whole logits.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bench.formulations.attention import dense_attention
from bench.formulations.ema import fft_convolution
from bench.formulations.norm import cumulative_sums
from bench.plain_decoding import LayerState, State, feed_forward, linear, queries_keys, unit_rms
from megalodon_jax import MegalodonForCausalLM


def forward(model: MegalodonForCausalLM, ids) -> jax.Array:
    """Logits [B, L, V] of ids [B, L]."""
    return prefill(model, ids)[0]


def loss(model: MegalodonForCausalLM, ids) -> jax.Array:
    """Mean cross-entropy of the next token."""
    logits, targets = forward(model, ids)[:, :-1], ids[:, 1:, None]
    return jnp.mean(jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets, -1)[..., 0])


def prefill(model: MegalodonForCausalLM, ids) -> tuple[jax.Array, State]:
    """Logits, and the state from which `plain_decoding` goes on."""
    x, layers = model.model.embed.weight[ids], []
    for layer in model.model.layers:
        middle, state = _attention_half(layer.attn, x, model.config.chunk_size)
        x = x + feed_forward(layer.ffn, x + middle)
        layers.append(state)
    x, mean, var = _norm(model.model.norm, x)
    head = model.model.embed.weight if model.lm_head is None else model.lm_head.weight
    return x @ head.T, State(jnp.asarray(ids.shape[1], jnp.int32), tuple(layers), mean, var)


def _attention_half(attn: Any, x, chunk: int):
    batch, length, _ = x.shape
    t, mean, var = _norm(attn.timenorm, x)
    p, q, gamma = attn.cema._coeffs()
    smooth = fft_convolution(t, p, q, gamma) + attn.cema.omega * t
    m = unit_rms(smooth, attn.norm_eps) * (1.0 + attn.rmsnorm.gamma)
    positions = jnp.arange(length)
    query, key = queries_keys(attn, m, (positions % chunk)[:, None, None])
    value = jax.nn.silu(linear(attn.wv, t)).reshape(batch, length, attn.num_heads, -1)
    o = dense_attention(query, key, value, chunk_size=chunk).reshape(batch, length, -1)
    y = linear(attn.wh1, m) + linear(attn.wh2, o * jax.nn.silu(linear(attn.wr, m)))
    return y, LayerState(mean, var, _last_state(t, p, q), *(_slots(array, chunk) for array in (key, value)))


def _last_state(x, p, q):
    """h[L] = sum_j q^(L-1-j) p x[j]."""
    steps = jnp.arange(x.shape[1] - 1, -1, -1, dtype=jnp.float32).astype(q.dtype)
    powers = jnp.exp(jnp.log(q)[..., None] * steps)
    return p.astype(q.dtype) * jnp.einsum("bld,dnl->bdn", x.astype(q.dtype), powers, precision=lax.Precision.HIGHEST)


def _slots(array, chunk: int):
    """The tokens of the chunk that the last one is in, and zeros where there are none yet."""
    length = array.shape[1]
    held = array[:, (length - 1) // chunk * chunk :]
    return jnp.pad(held, ((0, 0), (0, chunk - held.shape[1]), (0, 0), (0, 0)))


def _norm(norm: Any, x):
    return cumulative_sums(x, norm.weight, norm.bias, num_groups=norm.num_groups, eps=norm.eps)
