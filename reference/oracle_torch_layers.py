"""Configuration, caches and layers of the PyTorch oracle; equations in `oracle_torch`, ops in `oracle_torch_ops`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.oracle_torch_ops import (
    NormState,
    attend,
    chunked_attention,
    complex_ema,
    rotate,
    statistics_dtype,
    timestep_norm,
    zero_invalid,
)


@dataclass(frozen=True, kw_only=True)
class OracleConfig:
    """The configuration fields that matter for the numerics, named as in the library."""

    vocab_size: int = 32_000
    model_dim: int = 1024
    num_layers: int = 12
    num_heads: int = 1
    z_dim: int = 256
    value_dim: int = 2048
    ffn_hidden_dim: int = 2560
    cema_ndim: int = 16
    chunk_size: int = 2048
    max_cache_len: int | None = None
    cache_unbounded: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    norm_affine: bool = True
    rope_base: float | None = None
    swiglu: bool = False
    rescale_nffn: bool = False
    scale_emb: bool = False
    output_size: int | None = -1
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        """Check the divisibility that the reshapes rely on."""
        for name, divisor in (
            ("z_dim", 2 * self.num_heads),
            ("value_dim", self.num_heads),
            ("model_dim", self.norm_num_groups),
        ):
            if getattr(self, name) % divisor:
                raise ValueError(f"{name}={getattr(self, name)} is not a multiple of {divisor}")
        if self.num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {self.num_layers}")
        if self.window < 1:
            raise ValueError(f"max_cache_len must be positive or -1, got {self.max_cache_len}")

    @classmethod
    def from_any(cls, obj: Any, **overrides: Any) -> OracleConfig:
        """Read the fields that ``obj`` has as attributes; ``overrides`` win."""
        found = {f.name: getattr(obj, f.name) for f in fields(cls) if hasattr(obj, f.name)}
        return cls(**{**found, **overrides})

    @property
    def head_width(self) -> int:
        """Number of logits."""
        return self.vocab_size if self.output_size in (-1, None) else self.output_size

    @property
    def window(self) -> int:
        """Keys that a query can see in streaming mode."""
        return self.chunk_size if self.max_cache_len in (-1, None) else self.max_cache_len

    @property
    def sliding(self) -> bool:
        """Whether streaming slides a window, instead of restarting at each chunk boundary."""
        return self.cache_unbounded or self.window != self.chunk_size


@dataclass(frozen=True)
class AttentionCache:
    """Rotated keys [B, Lc, H, dz], values [B, Lc, H, dv], and the tokens seen so far."""

    k: Tensor
    v: Tensor
    count: int


@dataclass(frozen=True)
class LayerCache:
    """State of one layer; ema is complex [B, D, N], position equals ``attn.count``."""

    attn: AttentionCache
    norm: NormState
    ema: Tensor
    position: int


Cache = tuple[LayerCache | NormState, ...]  # one LayerCache per layer, then the final NormState


@dataclass(frozen=True)
class Inputs:
    """What every layer of one call shares: masks [B, L], rotary table, cache and EMA rules."""

    mask: Tensor | None
    segment_ids: Tensor | None
    rotary: tuple[Tensor, Tensor]
    stream: bool
    mask_ema: bool


class TimestepNorm(nn.Module):
    """Timestep normalisation with ``token_mean`` statistics."""

    def __init__(self, config: OracleConfig) -> None:
        super().__init__()
        self.num_groups, self.eps = config.norm_num_groups, config.norm_eps
        affine = config.norm_affine
        self.weight = nn.Parameter(torch.zeros(config.model_dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(config.model_dim)) if affine else None

    def forward(self, x: Tensor, state: NormState | None, inputs: Inputs) -> tuple[Tensor, NormState]:
        """x [B, L, D] -> y [B, L, D] and the new state."""
        return timestep_norm(
            x,
            self.weight,
            self.bias,
            num_groups=self.num_groups,
            eps=self.eps,
            state=state,
            mask=inputs.mask,
            segment_ids=inputs.segment_ids,
        )


class RMSNorm(nn.Module):
    """Root mean square normalisation over the features, scale ``1 + gamma``."""

    def __init__(self, config: OracleConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        affine = config.norm_affine
        self.gamma = nn.Parameter(torch.zeros(config.model_dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, D] -> [B, L, D]."""
        y = normalize_rms(x, self.eps)
        if self.gamma is not None:
            y = y * (1 + self.gamma.to(y.dtype))
        return y.to(x.dtype)


class LayerNorm(nn.Module):
    """Standard layer normalisation, scale ``weight``."""

    def __init__(self, config: OracleConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        affine = config.norm_affine
        self.weight = nn.Parameter(torch.ones(config.model_dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(config.model_dim)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, D] -> [B, L, D]."""
        a = x.to(statistics_dtype(x))
        centred = a - a.mean(-1, keepdim=True)
        y = normalize_rms(centred, self.eps)
        if self.weight is not None and self.bias is not None:
            y = y * self.weight.to(y.dtype) + self.bias.to(y.dtype)
        return y.to(x.dtype)


def normalize_rms(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis, in the statistics dtype."""
    x = x.to(statistics_dtype(x))
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class ComplexEMA(nn.Module):
    """The parameters of the complex EMA and their map to its coefficients."""

    def __init__(self, config: OracleConfig) -> None:
        super().__init__()
        d, n = config.model_dim, config.cema_ndim
        self.alpha = nn.Parameter(0.2 * torch.randn(d, n, 1))
        self.delta = nn.Parameter(0.2 * torch.randn(d, n, 1))
        frequency = torch.exp(-torch.arange(1, d + 1) * math.log(d) / d)[torch.randperm(d)]
        self.theta = nn.Parameter(torch.logit(frequency, eps=1e-6).reshape(d, 1, 1))
        self.gamma_real = nn.Parameter(torch.randn(d, n))
        self.gamma_imag = nn.Parameter(torch.zeros(d, n))
        omega = nn.init.trunc_normal_(torch.empty(d), std=0.25, a=-1.0, b=1.0)
        self.omega = nn.Parameter(omega)

    def coefficients(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """p (real), q and g (complex), each [D, N], in the given real dtype or its complex one."""
        n = self.gamma_real.shape[1]
        p = torch.sigmoid(self.alpha.to(dtype)).squeeze(-1)
        damping = torch.sigmoid(self.delta.to(dtype)).squeeze(-1)
        wavelet = torch.arange(1, n + 1, dtype=dtype, device=p.device)
        phase = torch.sigmoid(self.theta.to(dtype)).squeeze(-1) * (2 * math.pi / n) * wavelet
        q = torch.polar(1 - p * damping, phase)
        g = torch.complex(self.gamma_real.to(dtype), self.gamma_imag.to(dtype)) / math.sqrt(n)
        return p, q, g

    def forward(self, x: Tensor, h0: Tensor | None, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """x [B, L, D] -> y [B, L, D] and the state [B, D, N]."""
        p, q, g = self.coefficients(statistics_dtype(x))
        mask = inputs.mask if inputs.mask_ema else None
        return complex_ema(x, p, q, g, self.omega, h0=h0, mask=mask, segment_ids=inputs.segment_ids)


class ChunkedAttention(nn.Module):
    """Attention of rotated queries and keys, in one call or streamed."""

    def __init__(self, config: OracleConfig) -> None:
        super().__init__()
        self.chunk_size, self.window = config.chunk_size, config.window
        self.sliding = config.sliding

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, cache: AttentionCache | None, inputs: Inputs
    ) -> tuple[Tensor, AttentionCache | None]:
        """q, k [B, L, H, dz], v [B, L, H, dv] -> o [B, L, H, dv] and the cache if streaming."""
        if inputs.stream:
            return self.stream(q, k, v, cache, inputs.mask)
        mask, segment_ids = inputs.mask, inputs.segment_ids
        size = self.chunk_size
        return chunked_attention(q, k, v, chunk_size=size, mask=mask, segment_ids=segment_ids), None

    def stream(
        self, q: Tensor, k: Tensor, v: Tensor, cache: AttentionCache | None, mask: Tensor | None
    ) -> tuple[Tensor, AttentionCache]:
        """Shapes as in forward; the mask [B, L] covers the tokens of this call."""
        size = self.chunk_size
        k, v = zero_invalid(k, mask), zero_invalid(v, mask)
        start = past = 0
        if cache is not None:
            start, past = cache.count, cache.k.shape[1]
            k, v = torch.cat([cache.k, k], 1), torch.cat([cache.v, v], 1)
        # Absolute positions: of the first key, of the first query of a block, and past the last.
        oldest, position, end = start - past, start, start + q.shape[1]
        valid = None if mask is None else F.pad(mask, (past, 0), value=True)

        outputs = []
        while position < end:
            # Up to the next chunk boundary, which keeps a block of queries at most C long.
            stop = min(end, (position // size + 1) * size)
            first = position - self.window + 1 if self.sliding else position // size * size
            first = max(first, oldest)
            query = torch.arange(position, stop, device=q.device)[:, None]
            key = torch.arange(first, stop, device=q.device)
            allowed = key <= query
            if self.sliding:
                allowed = allowed & (key > query - self.window)
            allowed = allowed[None]
            cols = slice(first - oldest, stop - oldest)
            if valid is not None:
                allowed = allowed & valid[:, None, cols]
            rows = slice(position - start, stop - start)
            outputs.append(attend(q[:, rows], k[:, cols], v[:, cols], allowed))
            position = stop

        # What a later query can still see: the window, or the part of the chunk that is done.
        drop = max(k.shape[1] - (self.window if self.sliding else end % size), 0)
        o = torch.cat(outputs, 1) if outputs else v[:, :0]
        return o, AttentionCache(k[:, drop:].detach(), v[:, drop:].detach(), end)


class MegalodonAttention(nn.Module):
    """Timestep norm, EMA and gated chunked attention: the map x -> x' of the model equations."""

    def __init__(self, config: OracleConfig) -> None:
        super().__init__()
        d, z, e = config.model_dim, config.z_dim, config.value_dim
        self.num_heads, self.eps = config.num_heads, config.norm_eps
        self.timenorm = TimestepNorm(config)
        self.cema = ComplexEMA(config)
        self.rmsnorm = RMSNorm(config)
        self.wz = nn.Linear(d, z)
        self.wv = nn.Linear(d, e)
        self.wr = nn.Linear(d, e)
        self.wh1 = nn.Linear(d, d)
        self.wh2 = nn.Linear(e, d)
        self.gamma = nn.Parameter(torch.zeros(2, z))
        self.beta = nn.Parameter(torch.zeros(2, z))
        self.inner = ChunkedAttention(config)

    def forward(self, x: Tensor, cache: LayerCache | None, inputs: Inputs) -> tuple[Tensor, LayerCache | None]:
        """x [B, L, D] -> x' [B, L, D] and the cache if streaming."""
        heads = (self.num_heads, -1)
        norm_state, ema_state, attn = (None, None, None) if cache is None else (cache.norm, cache.ema, cache.attn)
        xt, norm_state = self.timenorm(x, norm_state, inputs)
        y, ema_state = self.cema(xt, ema_state, inputs)
        mx = self.rmsnorm(y)

        z = normalize_rms(self.wz(mx).unflatten(-1, heads), self.eps)
        scale = (1 + self.gamma.to(z.dtype)).unflatten(-1, heads) / math.sqrt(z.shape[-1])
        shift = self.beta.to(z.dtype).unflatten(-1, heads)
        q, k = (rotate(z * scale[j] + shift[j], inputs.rotary).to(x.dtype) for j in (0, 1))
        v = F.silu(self.wv(xt)).unflatten(-1, heads)
        r = F.silu(self.wr(mx))
        o, attn = self.inner(q, k, v, attn, inputs)
        y = x + (self.wh1(mx) + self.wh2(o.flatten(-2) * r))
        if attn is None:
            return y, None
        norm_state = NormState(*(part.detach() for part in norm_state))
        return y, LayerCache(attn, norm_state, ema_state.detach(), attn.count)


class NormalizedFFN(nn.Module):
    """Feed-forward network on the layer-normalised x', added to the block input x."""

    def __init__(self, config: OracleConfig, layer: int) -> None:
        super().__init__()
        d, f = config.model_dim, config.ffn_hidden_dim
        self.scale = 0.1 * 0.5**layer if config.rescale_nffn else 1.0
        self.norm = LayerNorm(config)
        self.fc1 = nn.Linear(d, f)
        self.fc3 = nn.Linear(d, f) if config.swiglu else None
        self.fc2 = nn.Linear(f, d)

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        """x and x' = attended, [B, L, D] -> the block output [B, L, D]."""
        n = self.norm(attended)
        hidden = F.silu(self.fc1(n))
        if self.fc3 is not None:
            hidden = hidden * self.fc3(n)
        return x + self.scale * self.fc2(hidden)
