r"""The truth: the three ops and their adjoints in float64 NumPy, one time step after the other.

Nothing here is fast or clever. Every forward follows its recurrence literally; every adjoint walks the same steps
backwards. Complex cotangents follow PyTorch's convention, zbar = dL/dRe z + i dL/dIm z (JAX's is the conjugate).

Packed documents: a run is a maximal stretch of equal segment ids; every run but the first resets the state; id 0 is
padding and acts as mask False. With `segment_ids` the returned state is that after the last valid token.

complex_ema     h[t] = A[t] h[t-1] + p x[t],  y[t] = Re(sum_n gamma h[t]) + omega x[t],  A[t] = q, or 0 at a reset
  adjoint       lam[t] = conj(gamma) dy[t] + conj(A[t+1]) lam[t+1] (+ dh at the returned step)
                dx[t] = sum_n p Re lam[t] + omega dy[t]     dq = sum_{A[t]=q} conj(h[t-1]) lam[t]
                dp = sum x[t] Re lam[t]   dgamma = sum dy[t] conj(h[t])
                domega = sum dy[t] x[t]   dh0 = conj(A[0]) lam[0]
timestep_norm   Welford: n += 1; d = u - mean; mean += d / n; M2 += d (u - mean) + s;  var = M2 / n
  adjoint       every step reversed by the chain rule
attention       o[i] = sum_j softmax_j(q[i].k[j]) v[j] over the allowed j; cached keys stand before the first token
gated           g = o silu(gate + gate_bias), the values being silu(v + v_bias); silu(x) = x / (1 + e^-x)
"""

import numpy as np

VARIANCE_FLOOR = 1e-6


def _resets(segment_ids, shape):
    """True where a run starts, position 0 excepted."""
    resets = np.zeros(shape, bool)
    if segment_ids is not None:
        ids = np.asarray(segment_ids)
        resets[:, 1:] = ids[:, 1:] != ids[:, :-1]
    return resets


def _valid(mask, segment_ids, shape):
    valid = np.ones(shape, bool) if mask is None else np.asarray(mask, bool)
    return valid if segment_ids is None else valid & (np.asarray(segment_ids) != 0)


def _anchor(valid, segment_ids):
    """Step whose state is returned, per row; -1 means the incoming state."""
    length = valid.shape[1]
    if segment_ids is None:
        return np.full(valid.shape[0], length - 1)
    return np.array([np.flatnonzero(row)[-1] if row.any() else -1 for row in valid])


def complex_ema(x, p, q, gamma, omega=None, *, h0=None, mask=None, segment_ids=None):
    """y [B, L, D] and the state [B, D, N], in float64 / complex128."""
    x, p = np.asarray(x, np.float64), np.asarray(p, np.float64)
    q, gamma = np.asarray(q, np.complex128), np.asarray(gamma, np.complex128)
    omega = np.zeros(x.shape[2]) if omega is None else np.asarray(omega, np.float64)
    states, x, *_ = _ema_states(x, p, q, h0, mask, segment_ids)
    y = np.stack([(gamma * h).sum(-1).real for h in states[1:]], axis=1) + omega * x
    last = _anchor(_valid(mask, segment_ids, x.shape[:2]), segment_ids) + 1
    return y, np.stack([states[t][b] for b, t in enumerate(last)])


def _ema_states(x, p, q, h0, mask, segment_ids):
    """[h0, h[0], h[1], ...], the inputs that entered, and the resets."""
    batch, length, _ = x.shape
    x = np.where(_valid(mask, segment_ids, (batch, length))[..., None], x, 0.0)
    resets = _resets(segment_ids, (batch, length))
    h = np.zeros((batch, *q.shape), np.complex128) if h0 is None else np.asarray(h0, np.complex128)
    states = [h]
    for t in range(length):
        h = np.where(resets[:, t, None, None], 0.0, q * h) + p * x[:, t, :, None]
        states.append(h)
    return states, x, resets


def complex_ema_vjp(x, p, q, gamma, omega=None, *, h0=None, mask=None, segment_ids=None, dy, dh=None):
    """Gradients of sum(y dy) + Re(sum(conj(dh) h)): dict over x, p, q, gamma, omega, h0."""
    x, p = np.asarray(x, np.float64), np.asarray(p, np.float64)
    q, gamma = np.asarray(q, np.complex128), np.asarray(gamma, np.complex128)
    dy = np.asarray(dy, np.float64)
    omega = np.zeros(x.shape[2]) if omega is None else np.asarray(omega, np.float64)
    states, x, resets = _ema_states(x, p, q, h0, mask, segment_ids)
    valid = _valid(mask, segment_ids, x.shape[:2])
    last = _anchor(valid, segment_ids)
    dh = np.zeros_like(states[0]) if dh is None else np.asarray(dh, np.complex128)
    dx, dp, dq, dgamma = np.zeros_like(x), np.zeros_like(p), np.zeros_like(q), np.zeros_like(gamma)
    carry = np.zeros_like(states[0])
    for t in reversed(range(x.shape[1])):
        lam = np.conj(gamma) * dy[:, t, :, None] + carry + np.where((last == t)[:, None, None], dh, 0)
        dx[:, t] = (p * lam.real).sum(-1) + omega * dy[:, t]
        dp += (x[:, t, :, None] * lam.real).sum(0)
        dgamma += (dy[:, t, :, None] * np.conj(states[t + 1])).sum(0)
        through = np.where(resets[:, t, None, None], 0.0, lam)
        dq += (np.conj(states[t]) * through).sum(0)
        carry = np.conj(q) * through
    carry = carry + np.where((last == -1)[:, None, None], dh, 0)
    dx = np.where(valid[..., None], dx, 0.0)
    return {"x": dx, "p": dp, "q": dq, "gamma": dgamma, "omega": (dy * x).sum((0, 1)), "h0": carry}


def _norm_observations(x, num_groups, valid, statistics):
    """Group means u and within-group mean squared deviations s, [B, L, G]."""
    grouped = np.where(valid[..., None], x, 0.0).reshape(*x.shape[:2], num_groups, -1)
    u = grouped.mean(-1)
    s = ((grouped - u[..., None]) ** 2).mean(-1)
    return u, (s if statistics == "all_features" else np.zeros_like(s))


def timestep_norm(
    x, weight=None, bias=None, *, num_groups, eps=1e-5, state=None, mask=None, segment_ids=None,
    statistics="token_mean",
):  # fmt: skip
    """y [B, L, D] and the state (count, mean, var), in float64."""
    y, state, _ = _timestep_norm(x, weight, bias, num_groups, eps, state, mask, segment_ids, statistics)
    return y, state


def _timestep_norm(x, weight, bias, num_groups, eps, state, mask, segment_ids, statistics):
    x = np.asarray(x, np.float64)
    batch, length, features = x.shape
    weight = np.zeros(features) if weight is None else np.asarray(weight, np.float64)
    bias = np.zeros(features) if bias is None else np.asarray(bias, np.float64)
    shape = (batch, num_groups)
    if state is None:
        state = (np.zeros(batch, int), np.zeros(shape), np.ones(shape))
    state = tuple(np.asarray(part) for part in state)
    n, mean, var = (np.asarray(part, np.float64) for part in (state[0][:, None], *state[1:]))
    valid, resets = _valid(mask, segment_ids, (batch, length)), _resets(segment_ids, (batch, length))
    u, s = _norm_observations(x, num_groups, valid, statistics)
    weight_of_prior = np.maximum(n, 1) if statistics == "token_mean" else n
    m2, prior_var = weight_of_prior * var, var
    tape, y = [], np.zeros_like(x)
    for t in range(length):
        reset, k = resets[:, t, None], valid[:, t, None].astype(np.float64)
        n, mean = np.where(reset, 0.0, n), np.where(reset, 0.0, mean)
        m2 = np.where(reset, 1.0 if statistics == "token_mean" else 0.0, m2)
        prior_var = np.where(reset, 1.0, prior_var)
        mean_before = mean
        n = n + k
        safe = np.maximum(n, 1.0)
        delta = u[:, t] - mean
        # With n = 0 before, the incoming mean is forgotten: mean becomes u.
        mean = mean + k * delta / safe
        m2 = m2 + k * (delta * (u[:, t] - mean) + s[:, t])
        raw = np.where(n > 0, m2 / safe, prior_var)
        var = np.maximum(raw, VARIANCE_FLOOR) if statistics == "token_mean" else raw
        rstd = 1.0 / np.sqrt(var + eps)
        centred = x[:, t].reshape(batch, num_groups, -1) - mean[..., None]
        xhat = (centred * rstd[..., None]).reshape(batch, features)
        y[:, t] = xhat * (1 + weight) + bias
        if statistics == "all_features":
            y[:, t] = np.where(valid[:, t, None], y[:, t], 0.0)
        tape.append((mean_before, n, mean, raw, var, rstd, xhat))
    last = _anchor(valid, segment_ids)
    rows = list(enumerate(last))
    count = np.array([tape[t][1][b, 0] if t >= 0 else state[0][b] for b, t in rows], int)
    mean = np.stack([tape[t][2][b] if t >= 0 else state[1][b] for b, t in rows])
    var = np.stack([tape[t][4][b] if t >= 0 else state[2][b] for b, t in rows])
    return y, (count, mean, var), (tape, u, valid, resets, last, weight, state)


def timestep_norm_vjp(
    x, weight=None, bias=None, *, num_groups, eps=1e-5, state=None, mask=None, segment_ids=None,
    statistics="token_mean", dy, dmean=None, dvar=None,
):  # fmt: skip
    """Gradients of sum(y dy) + sum(mean dmean) + sum(var dvar): dict over x, weight, bias, mean, var."""
    x, dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    _, _, (tape, u, valid, resets, last, weight, state) = _timestep_norm(
        x, weight, bias, num_groups, eps, state, mask, segment_ids, statistics
    )
    batch, length, features = x.shape
    size, hf = features // num_groups, statistics == "token_mean"
    dmean = np.zeros((batch, num_groups)) if dmean is None else np.asarray(dmean, np.float64)
    dvar = np.zeros((batch, num_groups)) if dvar is None else np.asarray(dvar, np.float64)
    if not hf:
        dy = np.where(valid[..., None], dy, 0.0)
    dx, dweight = np.zeros_like(x), np.zeros(features)
    # Cotangents of the mean, M2 and prior variance carried from the step after.
    c_mean, c_m2, c_prior = (np.zeros((batch, num_groups)) for _ in range(3))
    for t in reversed(range(length)):
        mean_before, n, mean, raw, _, rstd, xhat = tape[t]
        k, safe = valid[:, t, None].astype(np.float64), np.maximum(n, 1.0)
        dz = (dy[:, t] * (1 + weight)).reshape(batch, num_groups, size)
        centred = x[:, t].reshape(batch, num_groups, size) - mean[..., None]
        dweight += (dy[:, t] * xhat).sum(0)
        returned = (last == t)[:, None]
        d_var = -0.5 * rstd**3 * (dz * centred).sum(-1) + np.where(returned, dvar, 0.0)
        d_raw = np.where(raw < VARIANCE_FLOOR, 0.0, d_var) if hf else d_var
        d_mean = -rstd * dz.sum(-1) + np.where(returned, dmean, 0.0) + c_mean
        d_m2 = c_m2 + np.where(n > 0, d_raw / safe, 0.0)
        d_prior = c_prior + np.where(n > 0, 0.0, d_raw)
        # m2 = m2_before + k ((u - mean_before) (u - mean) + s);  mean = mean_before + k (u - mean_before) / n
        before, after = u[:, t] - mean_before, u[:, t] - mean
        d_u = k * d_m2 * (before + after)
        d_mean = d_mean - k * d_m2 * before
        d_before = -k * d_m2 * after + d_mean * (1 - k / safe)
        d_u = d_u + k * d_mean / safe
        d_feature = dz * rstd[..., None] + d_u[..., None] / size
        if not hf:
            grouped = x[:, t].reshape(batch, num_groups, size)
            d_feature = d_feature + (k * d_m2)[..., None] * 2 * (grouped - u[:, t, :, None]) / size
        dx[:, t] = d_feature.reshape(batch, features)
        keep = ~resets[:, t, None]
        c_mean, c_m2, c_prior = keep * d_before, keep * d_m2, keep * d_prior
    n0 = np.asarray(state[0], np.float64)[:, None]
    untouched = (last == -1)[:, None]
    d_var0 = c_m2 * (np.maximum(n0, 1) if hf else n0) + c_prior + np.where(untouched, dvar, 0.0)
    d_mean0 = c_mean + np.where(untouched, dmean, 0.0)
    return {"x": dx, "weight": dweight, "bias": dy.sum((0, 1)), "mean": d_mean0, "var": d_var0}


def _allowed(chunk_size, valid, resets):
    """[L, L] of one row: may query i attend key j?"""
    length = len(valid)
    allowed = np.zeros((length, length), bool)
    start, run, chunk = 0, np.zeros(length, int), np.zeros(length, int)
    for i in range(length):
        if resets[i]:
            start = i
        run[i], chunk[i] = start, (i - start) // chunk_size
        for j in range(i + 1):
            allowed[i, j] = run[j] == run[i] and chunk[j] == chunk[i] and valid[j]
    return allowed


def _by_head(a):
    """[H, L, ...] of [L, H, ...], and back: one matrix for each head."""
    return np.swapaxes(a, 0, 1)


def _attention_rows(q, k, v, chunk_size, mask, segment_ids, cached_k, cached_v, cached_length):
    """For each row: queries [L, H, K], keys and values [n + L, H, ...] and the weights [H, L, n + L], where n keys were
    there before, of the chunk that the first query is in."""
    valid, resets = _valid(mask, segment_ids, q.shape[:2]), _resets(segment_ids, q.shape[:2])
    for b in range(q.shape[0]):
        n = 0 if cached_length is None else int(cached_length[b])
        before = [a[b, :0] if n == 0 else np.asarray(c[b, :n], np.float64) for a, c in ((k, cached_k), (v, cached_v))]
        keys, values = (np.concatenate(pair) for pair in zip(before, (k[b], v[b]), strict=True))
        everywhere = np.concatenate([np.ones(n, bool), valid[b]]), np.concatenate([np.zeros(n, bool), resets[b]])
        allowed = _allowed(chunk_size, *everywhere)[n:]
        scores = np.where(allowed, _by_head(q[b]) @ _by_head(keys).mT, -np.inf)
        top = scores.max(-1, keepdims=True)
        weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
        total = weights.sum(-1, keepdims=True)
        yield q[b], keys, values, weights / np.where(total == 0, 1.0, total)


def chunked_attention(
    q, k, v, *, chunk_size, mask=None, segment_ids=None, cached_k=None, cached_v=None, cached_length=None
):
    """o [B, L, H, V] in float64."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    rows = _attention_rows(q, k, v, chunk_size, mask, segment_ids, cached_k, cached_v, cached_length)
    return np.stack([_by_head(weights @ _by_head(values)) for _, _, values, weights in rows])


def chunked_attention_vjp(
    q, k, v, *, chunk_size, mask=None, segment_ids=None, cached_k=None, cached_v=None, cached_length=None, do
):
    """Gradients of sum(o do): dict over q, k, v and, if they are given, cached_k, cached_v."""
    q, k, v, do = (np.asarray(a, np.float64) for a in (q, k, v, do))
    gradients = {name: np.zeros(a.shape) for name, a in (("q", q), ("k", k), ("v", v))}
    if cached_k is not None and cached_v is not None:
        gradients |= {"cached_k": np.zeros(cached_k.shape), "cached_v": np.zeros(cached_v.shape)}
    rows = _attention_rows(q, k, v, chunk_size, mask, segment_ids, cached_k, cached_v, cached_length)
    for b, (queries, keys, values, weights) in enumerate(rows):
        n = len(keys) - k.shape[1]
        d_weights = _by_head(do[b]) @ _by_head(values).mT
        d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdims=True))
        d_keys = _by_head(d_scores.mT @ _by_head(queries))
        d_values = _by_head(weights.mT @ _by_head(do[b]))
        gradients["q"][b] = _by_head(d_scores @ _by_head(keys))
        gradients["k"][b], gradients["v"][b] = d_keys[n:], d_values[n:]
        if n:
            gradients["cached_k"][b, :n], gradients["cached_v"][b, :n] = d_keys[:n], d_values[:n]
    return gradients


def activated_attention(q, k, v, *, v_bias, **kwargs):
    """o [B, L, H, V] in float64; other arguments as in `chunked_attention`, whose cached values are activated ones."""
    return chunked_attention(q, k, _silu(np.asarray(v, np.float64) + v_bias), **kwargs)


def activated_attention_vjp(q, k, v, *, v_bias, do, **kwargs):
    """Gradients of sum(o do): those of `chunked_attention_vjp`, and over v_bias."""
    raw = np.asarray(v, np.float64) + v_bias
    gradients = chunked_attention_vjp(q, k, _silu(raw), do=do, **kwargs)
    gradients["v"] = gradients["v"] * _silu_slope(raw)
    gradients["v_bias"] = gradients["v"].sum((0, 1))
    return gradients


def gated_attention(*values, gate, gate_bias, **kwargs):
    """g [B, L, H, V] in float64; other arguments as in `activated_attention`."""
    return activated_attention(*values, **kwargs) * _silu(np.asarray(gate, np.float64) + gate_bias)


def gated_attention_vjp(*values, gate, gate_bias, do, **kwargs):
    """Gradients of sum(g do): those of `activated_attention_vjp`, and over gate and gate_bias."""
    opening = np.asarray(gate, np.float64) + gate_bias
    dgate = do * activated_attention(*values, **kwargs) * _silu_slope(opening)
    gradients = activated_attention_vjp(*values, do=do * _silu(opening), **kwargs)
    return gradients | {"gate": dgate, "gate_bias": dgate.sum((0, 1))}


def _silu(x):
    return x / (1.0 + np.exp(-x))


def _silu_slope(x):
    share = 1.0 / (1.0 + np.exp(-x))
    return share * (1.0 + x * (1.0 - share))
