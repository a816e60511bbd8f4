"""The three Megalodon ops and the rotary embedding in plain PyTorch, one time step after another.

Activations are time-major, ``[batch, length, features]``. Nothing here is fast on purpose: each
op is the loop that defines it, and autograd supplies the gradients.

ComplexEMA, per channel d and state n (gate ``I_t`` = 1 for a valid token, else 0)::

    h_t = q h_{t-1} + p I_t x_t             y_t = Re(sum_n gamma_n h_{t,n}) + omega I_t x_t

TimestepNorm, per group g, with ``k_t`` = 1 for a valid token and ``u_t`` the mean of the group's
features at t, from a state (n_0, m_0, v_0) that starts at (0, 0, 1)::

    n_t    = n_{t-1} + k_t
    mean_t = mean_{t-1} + k_t (u_t - mean_{t-1}) / n_t
    M_t    = M_{t-1} + k_t ((u_t - mean_{t-1}) (u_t - mean_t) + w_t)
    var_t  = M_t / n_t                      (v_0 while n_t = 0)
    y_t    = (x_t - mean_t) / sqrt(var_t + eps) * (1 + weight) + bias

* ``token_mean``: w_t = 0, M_0 = max(n_0, 1) v_0 (a fresh v_0 counts as one observation),
  var_t >= 1e-6, and a masked position is normalised with the statistics as they stand.
* ``all_features``: w_t = variance within the group at t, M_0 = n_0 v_0 (a fresh v_0 has no
  weight), no floor, and a masked position gives 0.

Chunked attention, with scale 1 and chunk size C::

    o_i = sum_j softmax_j(q_i . k_j) v_j    over valid j <= i in the run and the C-chunk of i

Packed documents: a *run* is a maximal stretch of equal ``segment_ids``; id 0 is padding and acts
as mask False. Every run that starts at t > 0 starts from a fresh state, the first one continues
the incoming state, and the chunk grid of attention restarts with each run.

Arithmetic: statistics, states, scores and softmax are in the statistics dtype (float64 for
float64 inputs, else float32) and each op rounds once, to the dtype of its input. Gradients with
respect to complex arrays follow PyTorch: dL/dRe + i dL/dIm, the conjugate of JAX's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

VARIANCE_FLOOR = 1e-6


class NormState(NamedTuple):
    """Running statistics: count [B] int64, mean [B, G] and var [B, G] in the statistics dtype."""

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]
    mean: Tensor
    var: Tensor


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Dtype of statistics, states and softmax for activations ``x``: float64 or float32."""
    if x.dtype not in (torch.float64, torch.float32, torch.bfloat16):
        raise TypeError(f"expected float64, float32 or bfloat16 activations, got {x.dtype}")
    return torch.promote_types(x.dtype, torch.float32)


def run_starts(segment_ids: Tensor) -> Tensor:
    """True at the first position of every run; [B, L] int -> [B, L] bool."""
    starts = torch.ones_like(segment_ids, dtype=torch.bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    return starts


def run_positions(segment_ids: Tensor) -> Tensor:
    """Position of every token within its run, from 0; [B, L] int -> [B, L] int64."""
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    first = torch.where(run_starts(segment_ids), index, 0).cummax(1).values
    return index - first


def valid_tokens(mask: Tensor | None, segment_ids: Tensor | None) -> Tensor | None:
    """``mask`` and ``segment_ids != 0`` combined: [B, L] bool, or None if all are valid."""
    if segment_ids is None:
        return mask
    return segment_ids != 0 if mask is None else mask & (segment_ids != 0)


def complex_ema(
    x: Tensor,
    p: Tensor,
    q: Tensor,
    gamma: Tensor,
    omega: Tensor | None = None,
    *,
    h0: Tensor | None = None,
    mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Damped complex exponential moving average with a skip term.

    Args:
        x: [B, L, D] inputs.
        p: [D, N] real input coefficient.
        q: [D, N] complex decay, |q| < 1.
        gamma: [D, N] complex output coefficient.
        omega: [D] real skip coefficient, or None for no skip term.
        h0: [B, D, N] complex incoming state, or None for zeros.
        mask: [B, L] bool, True = valid. A masked input is zero, in the skip term too; the state
            still decays and an output is still emitted.
        segment_ids: [B, L] int; 0 is padding. See the module docstring.

    Returns:
        y [B, L, D] in ``x.dtype`` and the state h [B, D, N], complex in the statistics dtype:
        after the last step, or with ``segment_ids`` after the row's last valid token (h0 if the
        row has none).
    """
    dtype = statistics_dtype(x)
    p, q, gamma = p.to(dtype), q.to(dtype.to_complex()), gamma.to(dtype.to_complex())
    inputs = x.to(dtype)
    valid = valid_tokens(mask, segment_ids)
    if valid is not None:
        inputs = torch.where(valid[..., None], inputs, 0)
    starts = None if segment_ids is None else run_starts(segment_ids)

    h = q.new_zeros((x.shape[0], *q.shape)) if h0 is None else h0.to(q.dtype)
    h_valid = h
    outputs = []
    for t in range(x.shape[1]):
        if starts is not None and t > 0:
            h = torch.where(starts[:, t, None, None], 0, h)
        h = q * h + p * inputs[:, t, :, None]
        if segment_ids is not None and valid is not None:
            h_valid = torch.where(valid[:, t, None, None], h, h_valid)
        outputs.append((gamma * h).real.sum(-1))
    if not outputs:
        return x, h
    y = torch.stack(outputs, 1)
    if omega is not None:
        y = y + omega.to(dtype) * inputs
    return y.to(x.dtype), h if segment_ids is None else h_valid


def timestep_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    num_groups: int,
    eps: float = 1e-5,
    state: tuple[Tensor, Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    statistics: str = "token_mean",
) -> tuple[Tensor, NormState]:
    """Group normalisation with the statistics of all tokens up to and including this one.

    Args:
        x: [B, L, D] inputs; group g holds features g D/G .. (g+1) D/G - 1.
        weight: [D] or None; the scale is ``1 + weight``.
        bias: [D] or None.
        num_groups: G, a divisor of D.
        eps: added to the variance.
        state: (count [B], mean [B, G], var [B, G]) of earlier tokens, or None for (0, 0, 1).
        mask: [B, L] bool, True = valid. A masked token does not enter the statistics.
        segment_ids: [B, L] int; 0 is padding. See the module docstring.
        statistics: "token_mean" or "all_features". See the module docstring.

    Returns:
        y [B, L, D] in ``x.dtype`` and the state after the last step, or with ``segment_ids``
        after the row's last valid token (the incoming state if the row has none). The returned
        variance is the floored one.
    """
    if statistics not in ("token_mean", "all_features"):
        raise ValueError(f"statistics is 'token_mean' or 'all_features', got {statistics!r}")
    batch, length, features = x.shape
    if features % num_groups:
        raise ValueError(f"num_groups={num_groups} does not divide {features} features")
    token_mean = statistics == "token_mean"
    dtype = statistics_dtype(x)
    grouped = x.to(dtype).unflatten(-1, (num_groups, -1))
    valid = valid_tokens(mask, segment_ids)
    if valid is None:
        valid = torch.ones(batch, length, dtype=torch.bool, device=x.device)
    starts = None if segment_ids is None else run_starts(segment_ids)
    # Zeroed before any arithmetic: a masked NaN reaches neither statistics nor gradients.
    observed = torch.where(valid[..., None, None], grouped, 0)
    group_mean = observed.mean(-1)
    group_var = (observed - group_mean[..., None]).square().mean(-1)

    if state is None:
        count = torch.zeros(batch, dtype=torch.int64, device=x.device)
        mean = grouped.new_zeros(batch, num_groups)
        var = grouped.new_ones(batch, num_groups)
    else:
        count, mean, var = state[0].to(torch.int64), state[1].to(dtype), state[2].to(dtype)
    prior_var = var
    m2 = (count.clamp(min=1) if token_mean else count).to(dtype)[:, None] * var
    current = last_valid = NormState(count, mean, var)

    means, variances = [], []
    for t in range(length):
        if starts is not None and t > 0:
            fresh = starts[:, t]
            count = torch.where(fresh, 0, count)
            mean = torch.where(fresh[:, None], 0, mean)
            prior_var = torch.where(fresh[:, None], 1, prior_var)
            m2 = torch.where(fresh[:, None], 1 if token_mean else 0, m2)
        k = valid[:, t, None]
        count = count + valid[:, t]
        n = count.clamp(min=1).to(dtype)[:, None]
        delta = group_mean[:, t] - mean
        mean = torch.where(k, mean + delta / n, mean)
        m2_step = delta * (group_mean[:, t] - mean)
        if not token_mean:
            m2_step = m2_step + group_var[:, t]
        m2 = torch.where(k, m2 + m2_step, m2)
        var = torch.where(count[:, None] > 0, m2 / n, prior_var)
        if token_mean:
            var = var.clamp(min=VARIANCE_FLOOR)
        current = NormState(count, mean, var)
        if segment_ids is not None:
            last_valid = NormState(
                torch.where(valid[:, t], count, last_valid.count),
                torch.where(k, mean, last_valid.mean),
                torch.where(k, var, last_valid.var),
            )
        means.append(mean)
        variances.append(var)
    if not means:
        return x, current

    mean, var = torch.stack(means, 1)[..., None], torch.stack(variances, 1)[..., None]
    y = ((grouped - mean) * torch.rsqrt(var + eps)).flatten(-2)
    if weight is not None:
        y = y * (1 + weight.to(dtype))
    if bias is not None:
        y = y + bias.to(dtype)
    if not token_mean:
        y = torch.where(valid[..., None], y, 0)
    return y.to(x.dtype), current if segment_ids is None else last_valid


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Softmax attention with scale 1 over the allowed keys.

    Args:
        q: [B, Lq, H, Dk].
        k: [B, Lk, H, Dk].
        v: [B, Lk, H, Dv].
        allowed: [B or 1, Lq, Lk] bool; a query with no allowed key gives exactly 0.

    Returns:
        o [B, Lq, H, Dv] in ``q.dtype``.
    """
    dtype = statistics_dtype(q)
    blocked = ~allowed[:, None]
    scores = torch.einsum("bqhd,bkhd->bhqk", q.to(dtype), k.to(dtype))
    # A finite fill keeps a row without keys free of NaN; the second fill makes it, and its
    # gradients, exactly zero.
    scores = scores.masked_fill(blocked, torch.finfo(dtype).min)
    weights = scores.softmax(-1).masked_fill(blocked, 0)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v.to(dtype)).to(q.dtype)


def zero_invalid(x: Tensor, valid: Tensor | None) -> Tensor:
    """``x`` [B, L, H, D] with invalid tokens [B, L] set to 0, as 0 * NaN is not 0."""
    return x if valid is None else torch.where(valid[..., None, None], x, 0)


def chunked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    chunk_size: int,
    mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """Causal attention within consecutive chunks; scale 1, q and k already rotated.

    Args:
        q: [B, L, H, Dk].
        k: [B, L, H, Dk].
        v: [B, L, H, Dv].
        chunk_size: C; the chunk grid starts at index 0, or at each run with ``segment_ids``.
        mask: [B, L] bool, True = valid. Masked keys are not attended.
        segment_ids: [B, L] int; 0 is padding. See the module docstring.

    Returns:
        o [B, L, H, Dv] in ``q.dtype``; exactly 0 where no key is allowed.
    """
    length = q.shape[1]
    index = torch.arange(length, device=q.device)
    valid = valid_tokens(mask, segment_ids)
    k, v = zero_invalid(k, valid), zero_invalid(v, valid)
    if segment_ids is None:
        run, chunk = torch.zeros_like(index)[None], (index // chunk_size)[None]
    else:
        run, chunk = run_starts(segment_ids).cumsum(1), run_positions(segment_ids) // chunk_size

    outputs = []
    for start in range(0, length, chunk_size):
        # The keys of a query lie in the C positions that end with it, so a block of C queries
        # needs no more than two blocks of keys (one, where the grid starts at index 0).
        rows = slice(start, start + chunk_size)
        cols = slice(start if segment_ids is None else max(0, start - chunk_size), rows.stop)
        allowed = (
            (index[cols] <= index[rows, None])
            & (run[:, None, cols] == run[:, rows, None])
            & (chunk[:, None, cols] == chunk[:, rows, None])
        )
        if valid is not None:
            allowed = allowed & valid[:, None, cols]
        outputs.append(attend(q[:, rows], k[:, cols], v[:, cols], allowed))
    return torch.cat(outputs, 1) if outputs else v.to(q.dtype)


def rotary_table(positions: Tensor, dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of ``position * base**(-j / (dim/2))``, j = 0 .. dim/2 - 1.

    Args:
        positions: [B or 1, L] int.
        dim: even head dimension.
        base: rotary base.
        dtype: of the result; the angles themselves are formed in float64.

    Returns:
        cos and sin, [B or 1, L, dim/2].
    """
    j = torch.arange(dim // 2, dtype=torch.float64, device=positions.device)
    angle = positions[..., None] * base ** (-j / (dim // 2))
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (x_j, x_{j + dim/2}) of [B, L, H, dim] by a table [B or 1, L, dim/2]."""
    cos, sin = (part[:, :, None] for part in table)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
