r"""The whole model in float64 NumPy, from a dict of parameters by name; ops from `oracle_numpy`.

    block   x -> x + a FFN(LayerNorm(x + attention_half(x)))
    loss    mean over valid targets of logsumexp(logits[t-1]) - logits[t-1, target[t]]

Masks and documents follow the JAX library: masked inputs enter the EMA as zero. With `first_key`, the rule of a stream,
the query at t sees the keys first_key(t) .. t: t - t % C for chunks (which gives the same as without), or
max(t - W + 1, 0) where a window of W keys slides.
"""

import numpy as np

from reference import oracle_numpy as ops


def logits(parameters, config, input_ids, attention_mask=None, segment_ids=None, *, first_key=None):
    """[B, L, output_size]; `config` is anything with the fields of MegalodonConfig."""
    p = {name.removeprefix("model."): np.asarray(value, np.float64) for name, value in parameters.items()}
    tokens = {"mask": attention_mask, "segment_ids": segment_ids}
    ids = np.asarray(input_ids)
    x = p["embed.weight"][ids]
    if config.scale_emb:
        x = x * np.sqrt(config.model_dim)
    if config.pad_token_id is not None:
        x = np.where((ids == config.pad_token_id)[..., None], 0.0, x)
    for layer in range(config.num_layers):
        x = _block(_under(p, f"layers.{layer}."), config, layer, x, tokens, first_key)
    x = _timestep_norm(_under(p, "norm."), config, x, tokens)
    return x @ p.get("lm_head.weight", p["embed.weight"]).T


def loss(parameters, config, input_ids, labels, attention_mask=None, segment_ids=None, ignore_index=-100):
    """Mean cross-entropy over the targets that count, 0 if there is none."""
    rows = logits(parameters, config, input_ids, attention_mask, segment_ids)
    labels, total, count = np.asarray(labels), 0.0, 0
    for b in range(labels.shape[0]):
        for t in range(1, labels.shape[1]):
            counts = labels[b, t] != ignore_index
            if attention_mask is not None:
                counts = counts and attention_mask[b, t]
            if segment_ids is not None:
                counts = counts and segment_ids[b, t] != 0 and segment_ids[b, t] == segment_ids[b, t - 1]
            if counts:
                row = rows[b, t - 1]
                total += row.max() + np.log(np.exp(row - row.max()).sum()) - row[labels[b, t]]
                count += 1
    return total / max(count, 1)


def _under(p, prefix):
    return {name.removeprefix(prefix): value for name, value in p.items() if name.startswith(prefix)}


def _block(p, config, layer, x, tokens, first_key):
    middle = x + _attention_half(_under(p, "attn."), config, x, tokens, first_key)
    return x + _feed_forward(_under(p, "ffn."), config, layer, middle)


def _attention_half(p, config, x, tokens, first_key):
    batch, length, _ = x.shape
    heads = (batch, length, config.num_heads, -1)
    normed = _timestep_norm(_under(p, "timenorm."), config, x, tokens)
    smooth, _ = ops.complex_ema(normed, *_ema_coefficients(_under(p, "cema."), config), **tokens)
    mean = _unit_rms(smooth, config.norm_eps) * (1 + p.get("rmsnorm.gamma", 0.0))
    z = _unit_rms(_linear(p, "wz", mean).reshape(heads), config.norm_eps)
    scale = (1 + p["gamma"].reshape(2, config.num_heads, -1)) / np.sqrt(config.z_dim // config.num_heads)
    shift = p["beta"].reshape(2, config.num_heads, -1)
    positions = _positions(tokens["segment_ids"], batch, length)
    q, k = (_rotate(z * scale[i] + shift[i], positions, config.rope_base or 10000.0) for i in range(2))
    v = _silu(_linear(p, "wv", normed)).reshape(heads)
    if first_key is None:
        o = ops.chunked_attention(q, k, v, chunk_size=config.chunk_size, **tokens)
    else:
        o = _attention(q, k, v, first_key)
    o = o.reshape(batch, length, -1)
    gate = _silu(_linear(p, "wr", mean))
    return _linear(p, "wh1", mean) + _linear(p, "wh2", o * gate)


def _attention(q, k, v, first_key):
    o = np.zeros((*q.shape[:3], v.shape[-1]))
    for t in range(q.shape[1]):
        seen = slice(first_key(t), t + 1)
        scores = np.einsum("bhd,bjhd->bhj", q[:, t], k[:, seen])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        o[:, t] = np.einsum("bhj,bjhe->bhe", weights / weights.sum(-1, keepdims=True), v[:, seen])
    return o


def _feed_forward(p, config, layer, x):
    centred = x - x.mean(-1, keepdims=True)
    n = _unit_rms(centred, config.norm_eps) * p.get("norm.weight", 1.0) + p.get("norm.bias", 0.0)
    hidden = _silu(_linear(p, "fc1", n))
    if config.swiglu:
        hidden = hidden * _linear(p, "fc3", n)
    return _linear(p, "fc2", hidden) * (0.1 * 0.5**layer if config.rescale_nffn else 1.0)


def _timestep_norm(p, config, x, tokens):
    y, _ = ops.timestep_norm(
        x, p.get("weight"), p.get("bias"), num_groups=config.norm_num_groups, eps=config.norm_eps, **tokens
    )
    return y


def _ema_coefficients(p, config):
    a, d = _sigmoid(p["alpha"][..., 0]), _sigmoid(p["delta"][..., 0])
    phase = np.arange(1, config.cema_ndim + 1) * _sigmoid(p["theta"][..., 0]) * 2 * np.pi / config.cema_ndim
    gamma = (p["gamma_real"] + 1j * p["gamma_imag"]) / np.sqrt(config.cema_ndim)
    return a, (1 - a * d) * np.exp(1j * phase), gamma, p["omega"]


def _positions(segment_ids, batch, length):
    positions = np.tile(np.arange(length), (batch, 1))
    if segment_ids is not None:
        ids = np.asarray(segment_ids)
        for b in range(batch):
            for t in range(1, length):
                positions[b, t] = positions[b, t - 1] + 1 if ids[b, t] == ids[b, t - 1] else 0
    return positions


def _rotate(z, positions, base):
    half = z.shape[-1] // 2
    angle = positions[:, :, None, None] * base ** (-np.arange(half) / half)
    a, b = z[..., :half], z[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def _unit_rms(x, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def _linear(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _silu(x):
    return x * _sigmoid(x)
