"""An independent PyTorch oracle of the Megalodon language model, written from its equations.

It is meant to be obviously right: the ops (``oracle_torch_ops``) step through time one token
after another, and autograd supplies the gradients. It runs in float64 (all of it, statistics and
states included), float32 and bfloat16. Its ``state_dict`` has the keys and shapes of
megalodon-hf, so that weights travel in both directions.

Model (D ``model_dim``, H heads, dz = ``z_dim``/H, dv = ``value_dim``/H)::

    x = embed[ids] * (sqrt(D) if scale_emb else 1);   rows with id pad_token_id are 0 if it is set
    per layer i:
      xt   = TimestepNorm(x)                                         stateful, sees the mask
      mx   = RMSNorm(ComplexEMA(xt))                                 stateful
      z    = reshape(Wz mx + bz, (B, L, H, dz));  z = z / sqrt(mean(z^2) + eps)
      q, k = rotary(z * (1 + gamma_j) / sqrt(dz) + beta_j),          j = 0 for q, 1 for k
      v    = silu(Wv xt + bv)                                        from xt, not from mx
      r    = silu(Wr mx + br)
      x'   = x + (Wh1 mx + bh1) + (Wh2 (attention(q, k, v) * r) + bh2)
      x    = x + a_i FFN(LayerNorm(x'))                              x again, not x'
    logits = TimestepNorm(x) W_lm^T

    FFN(n)       = W2 silu(W1 n + b1) + b2    or, swiglu,   W2 (silu(W1 n + b1) * (W3 n + b3)) + b2
    a_i          = 0.1 * 0.5^i if rescale_nffn else 1
    RMSNorm(x)   = x / sqrt(mean(x^2) + eps) * (1 + gamma)
    LayerNorm(x) = (x - mean) / sqrt(var + eps) * weight + bias

ComplexEMA coefficients, with s the logistic sigmoid and n = 1 .. N (``cema_ndim``)::

    p = s(alpha)      q = (1 - s(alpha) s(delta)) exp(i s(theta) 2 pi n / N)
    g = (gamma_real + i gamma_imag) / sqrt(N)
    h_t = q h_{t-1} + p x_t                   y_t = Re(sum_n g_n h_{t,n}) + omega x_t

TimestepNorm (``token_mean`` statistics) and chunked attention: see ``oracle_torch_ops``. Rotary
pairs are (j, j + dz/2), and positions are absolute, or local to the run in packed documents.

Streaming, with a cache given or asked for:

* chunk-local, if the window ``max_cache_len`` equals C = ``chunk_size`` and ``cache_unbounded`` is
  false: the chunk grid is that of absolute positions, so any split of a sequence into calls gives
  what one call gives.
* sliding otherwise: every query sees its last ``max_cache_len`` keys, itself included, however
  the calls are split. A call without a cache is block-diagonal in this mode too.

A cache remembers no mask: keys of earlier calls are taken to be valid.

Deliberate deviations from megalodon-hf:

* Norm states stay in the statistics dtype (float32 under bfloat16), not the activation dtype.
* Under bfloat16 every op computes in float32 and rounds once: RMSNorm, the rotary embedding and
  the EMA's omega term too, which megalodon-hf computes in bfloat16. Rotary angles are float64.
* Sliding mode is exact. In megalodon-hf it depends on how the calls are split.
* The loss of a batch without targets is 0, not NaN; masked targets do not count.
* An ``output_size`` other than ``vocab_size`` gives a separate head.
* ``pad_token_id``, ``mask_ema``, ``segment_ids`` and ``position_ids`` cover what the JAX library
  adds; their defaults give megalodon-hf.
* No dropout, hence no difference between training and evaluation mode.
"""

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
    rotary_table,
    rotate,
    run_positions,
    run_starts,
    statistics_dtype,
    timestep_norm,
    zero_invalid,
)

__all__ = [
    "AttentionCache",
    "LayerCache",
    "MegalodonForCausalLM",
    "MegalodonModel",
    "NormState",
    "OracleConfig",
    "chunked_attention",
    "complex_ema",
    "randomize_",
    "timestep_norm",
]


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


class MegalodonBlock(nn.Module):
    """One layer."""

    def __init__(self, config: OracleConfig, layer: int) -> None:
        super().__init__()
        self.attn = MegalodonAttention(config)
        self.ffn = NormalizedFFN(config, layer)

    def forward(self, x: Tensor, cache: LayerCache | None, inputs: Inputs) -> tuple[Tensor, LayerCache | None]:
        """x [B, L, D] -> [B, L, D] and the cache if streaming."""
        attended, cache = self.attn(x, cache, inputs)
        return self.ffn(x, attended), cache


class MegalodonModel(nn.Module):
    """Embedding, layers and the final norm."""

    def __init__(self, config: OracleConfig) -> None:
        """Draw the initial weights from the global generator."""
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.model_dim)
        self.layers = nn.ModuleList(MegalodonBlock(config, i) for i in range(config.num_layers))
        self.norm = TimestepNorm(config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        segment_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        mask_ema: bool = False,
    ) -> tuple[Tensor, Cache | None]:
        """input_ids [B, L] -> hidden states [B, L, D] and the cache if asked for.

        The arguments are those of `MegalodonForCausalLM.forward`.
        """
        config = self.config
        stream = use_cache or past_key_values is not None
        if stream and segment_ids is not None:
            raise ValueError("segment_ids cannot be combined with a cache")
        x = self.embed(input_ids)
        if config.scale_emb:
            x = x * math.sqrt(config.model_dim)
        if config.pad_token_id is not None:
            x = torch.where(input_ids[..., None] == config.pad_token_id, 0, x)

        past = past_key_values or (None,) * (config.num_layers + 1)
        if len(past) != config.num_layers + 1:
            raise ValueError(f"cache has {len(past)} entries, expected {config.num_layers + 1}")
        if position_ids is not None:
            positions = position_ids
        elif segment_ids is not None:
            positions = run_positions(segment_ids)
        else:
            start = past[0].position if isinstance(past[0], LayerCache) else 0
            end = start + input_ids.shape[1]
            positions = torch.arange(start, end, device=x.device)[None]
        base = 10_000.0 if config.rope_base is None else config.rope_base
        inputs = Inputs(
            mask=None if attention_mask is None else attention_mask.bool(),
            segment_ids=segment_ids,
            rotary=rotary_table(positions, config.z_dim // config.num_heads, base, statistics_dtype(x)),
            stream=stream,
            mask_ema=mask_ema,
        )
        caches = []
        for layer, cache in zip(self.layers, past[:-1], strict=True):
            x, cache = layer(x, cache, inputs)
            caches.append(cache)
        x, state = self.norm(x, past[-1], inputs)
        if not use_cache:
            return x, None
        return x, (*caches, NormState(*(part.detach() for part in state)))


class MegalodonForCausalLM(nn.Module):
    """Megalodon with a language model head, tied to the embedding if the widths agree.

    ``dtype`` is the dtype of all parameters; ``.to(dtype)`` changes it later.
    """

    def __init__(self, config: OracleConfig, dtype: torch.dtype = torch.float32) -> None:
        """Draw the initial weights from the global generator: normal, deviation 0.02."""
        super().__init__()
        self.config = config
        self.model = MegalodonModel(config)
        self.lm_head = nn.Linear(config.model_dim, config.head_width, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if config.head_width == config.vocab_size:
            self.lm_head.weight = self.model.embed.weight
        self.to(dtype)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        segment_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        mask_ema: bool = False,
    ) -> tuple[Tensor, Cache | None]:
        """Logits of every position.

        Args:
            input_ids: [B, L] int.
            attention_mask: [B, L] bool or 0/1, True = valid; covers the tokens of this call.
            past_key_values: the cache that an earlier call returned.
            use_cache: return a cache. All its tensors are detached.
            segment_ids: [B, L] int, packed documents; 0 is padding. Not with a cache.
            position_ids: [B, L] int, rotary positions. Default: absolute, or local to the run
                with ``segment_ids``.
            mask_ema: let ``attention_mask`` zero the inputs of the EMA (the JAX library) instead
                of keeping it from the EMA (megalodon-hf). Padding of ``segment_ids`` is always
                kept out.

        Returns:
            Logits [B, L, output size] in the parameter dtype, and the cache or None.
        """
        hidden, cache = self.model(
            input_ids,
            attention_mask,
            past_key_values,
            use_cache,
            segment_ids,
            position_ids,
            mask_ema,
        )
        return self.lm_head(hidden), cache

    def loss(
        self,
        input_ids: Tensor,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        ignore_index: int = -100,
        segment_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        mask_ema: bool = False,
    ) -> Tensor:
        """Mean cross-entropy of ``labels[:, t + 1]`` given ``input_ids[:, : t + 1]``.

        A target does not count if it equals ``ignore_index``, is masked, is padding (id 0), or
        belongs to another run than the position that predicts it.

        Args:
            input_ids: [B, L] int.
            labels: [B, L] int, not shifted.
            attention_mask: as in forward; masked targets do not count.
            ignore_index: label of targets that do not count.
            segment_ids: as in forward.
            position_ids: as in forward.
            mask_ema: as in forward.

        Returns:
            A scalar in the statistics dtype; 0 if no target counts.
        """
        logits, _ = self(
            input_ids,
            attention_mask,
            segment_ids=segment_ids,
            position_ids=position_ids,
            mask_ema=mask_ema,
        )
        targets = labels[:, 1:]
        counted = targets != ignore_index
        if attention_mask is not None:
            counted = counted & attention_mask[:, 1:].bool()
        if segment_ids is not None:
            counted = counted & ~run_starts(segment_ids)[:, 1:] & (segment_ids[:, 1:] != 0)
        logits = logits[:, :-1].to(statistics_dtype(logits))
        chosen = torch.where(counted, targets, 0)[..., None]
        surprise = -logits.log_softmax(-1).gather(-1, chosen).squeeze(-1)
        return torch.where(counted, surprise, 0).sum() / counted.sum().clamp(min=1)


@torch.no_grad()
def randomize_(model: MegalodonForCausalLM, seed: int, scale: float = 1.0) -> MegalodonForCausalLM:
    """Fill every parameter with random values of sensible size, in place.

    No parameter is left at zero, where it could hide an error. The values depend on the seed and
    the configuration only, up to rounding to the parameter's dtype. ``scale`` multiplies the
    deviation of each parameter from its neutral value.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
        if name.endswith("ffn.norm.weight"):
            value = 1 + 0.2 * noise
        elif name == "model.embed.weight":
            value = 0.5 * noise
        elif name.endswith(".weight") and noise.ndim == 2:
            value = noise / math.sqrt(noise.shape[1])
        elif ".cema." in name:
            value = noise  # |q| < 1 for any alpha and delta
        else:
            value = 0.2 * noise
        parameter.copy_(value)
    return model
