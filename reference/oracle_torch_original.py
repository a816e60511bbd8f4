"""A PyTorch oracle of the model of the CUDA release, with its state-dict keys; no cache, no dropout.

It differs from `oracle_torch` (D ``model_dim``, dz = ``z_dim``/H)::

    TimestepNorm   statistics over all features of a group; a masked position gives 0; gain and bias even if norm_affine
                   says that the other norms have none
    rotary         pairs (2j, 2j + 1) as complex numbers, turned by  t mod C  base^(-2j/dz)
    Linear         wz, wv, wr, wh1 have a bias; wh2, fc1, fc2, fc3 and the head have none
    gains          1 + weight in every norm
    FFN            x + alpha * W2 (...), alpha a vector that is learned, 1 without rescale_nffn
    head           its own weight unless share_emb
    padding        an id like any other in the embedding

    complex g      stored as [D, N, 2];  omega as [D, 1]
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.oracle_torch_ops import chunked_attention, complex_ema, statistics_dtype, timestep_norm


def rms(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


class Norm(nn.Module):
    """Gain and bias of a norm; prior statistics, which have no weight, where it runs over time."""

    def __init__(self, c: Any, *, bias: bool = True, prior: bool = False) -> None:
        super().__init__()
        self.c = c
        if c.norm_affine or prior:
            self.weight = nn.Parameter(torch.zeros(c.model_dim))
            if bias:
                self.bias = nn.Parameter(torch.zeros(c.model_dim))
        if prior:
            self.register_buffer("prior_count", torch.zeros((), dtype=torch.int64))
            self.register_buffer("prior_mean", torch.zeros(c.norm_num_groups))
            self.register_buffer("prior_logv", torch.zeros(c.norm_num_groups))

    def affine(self, x: Tensor) -> Tensor:
        """x with gain and bias, as far as there are any."""
        x = x * (1 + self.weight) if hasattr(self, "weight") else x
        return x + self.bias if hasattr(self, "bias") else x

    def over_time(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """TimestepNorm."""
        y, _ = timestep_norm(
            x, self.weight, self.bias,
            num_groups=self.c.norm_num_groups, eps=self.c.norm_eps, mask=mask, statistics="all_features",
        )  # fmt: skip
        return y


class CEMA(nn.Module):
    """Parameters of the complex EMA."""

    def __init__(self, c: Any) -> None:
        super().__init__()
        d, n = c.model_dim, c.cema_ndim
        self.alpha, self.delta = (nn.Parameter(torch.randn(d, n, 1)) for _ in range(2))
        self.theta = nn.Parameter(torch.randn(d, 1, 1))
        self.gamma = nn.Parameter(torch.randn(d, n, 2))
        self.omega = nn.Parameter(torch.randn(d, 1))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, L, D] -> y [B, L, D]."""
        n = self.gamma.shape[1]
        p = torch.sigmoid(self.alpha[..., 0])
        angle = torch.sigmoid(self.theta[..., 0]) * (2 * math.pi / n) * torch.arange(1, n + 1, dtype=x.dtype)
        q = (1 - p * torch.sigmoid(self.delta[..., 0])) * torch.exp(1j * angle)
        g = torch.view_as_complex(self.gamma.contiguous()) / math.sqrt(n)
        return complex_ema(x, p, q, g, self.omega[:, 0], mask=mask)[0]


class Mega(nn.Module):
    """Attention half."""

    def __init__(self, c: Any) -> None:
        super().__init__()
        self.c = c
        d, z, e = c.model_dim, c.z_dim, c.value_dim
        self.timenorm, self.cema, self.rmsnorm = Norm(c, prior=True), CEMA(c), Norm(c, bias=False)
        self.wz, self.wv, self.wr, self.wh1 = nn.Linear(d, z), nn.Linear(d, e), nn.Linear(d, e), nn.Linear(d, d)
        self.wh2 = nn.Linear(e, d, bias=False)
        self.gamma, self.beta = nn.Parameter(torch.zeros(2, z)), nn.Parameter(torch.zeros(2, z))

    def forward(self, x: Tensor, freqs: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, L, D] -> x' [B, L, D]."""
        c, heads = self.c, (self.c.num_heads, -1)
        t = self.timenorm.over_time(x, mask)
        m = self.rmsnorm.affine(rms(self.cema(t, mask), c.norm_eps))
        z = rms(self.wz(m).unflatten(-1, heads), c.norm_eps)
        angles = (torch.arange(x.shape[1]) % c.chunk_size)[:, None, None] * freqs
        turn = torch.polar(torch.ones_like(angles), angles)
        queries_and_keys = []
        for j in (0, 1):
            scaled = z * (1 + self.gamma[j].unflatten(-1, heads)) / math.sqrt(z.shape[-1])
            pairs = torch.view_as_complex((scaled + self.beta[j].unflatten(-1, heads)).unflatten(-1, (-1, 2)))
            queries_and_keys.append(torch.view_as_real(pairs * turn).flatten(-2))
        v = F.silu(self.wv(t)).unflatten(-1, heads)
        q, k = queries_and_keys
        o = chunked_attention(q, k, v, chunk_size=c.chunk_size, mask=mask)
        return x + self.wh1(m) + self.wh2(o.flatten(-2) * F.silu(self.wr(m)))


class NFFN(nn.Module):
    """Feed-forward half."""

    def __init__(self, c: Any, layer: int) -> None:
        super().__init__()
        self.c = c
        self.norm = Norm(c)
        self.fc1 = nn.Linear(c.model_dim, c.ffn_hidden_dim, bias=False)
        self.fc2 = nn.Linear(c.ffn_hidden_dim, c.model_dim, bias=False)
        if c.swiglu:
            self.fc3 = nn.Linear(c.model_dim, c.ffn_hidden_dim, bias=False)
        if c.rescale_nffn:
            self.alpha = nn.Parameter(torch.full((c.model_dim,), 0.1 * 0.5**layer))

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        """x and x', [B, L, D] -> [B, L, D]."""
        centred = attended - attended.mean(-1, keepdim=True)
        n = self.norm.affine(rms(centred, self.c.norm_eps))
        hidden = F.silu(self.fc1(n))
        if self.c.swiglu:
            hidden = hidden * self.fc3(n)
        y = self.fc2(hidden)
        return x + (self.alpha * y if self.c.rescale_nffn else y)


class Layer(nn.Module):
    """One block."""

    def __init__(self, c: Any, layer: int) -> None:
        super().__init__()
        self.mega, self.nffn = Mega(c), NFFN(c, layer)

    def forward(self, x: Tensor, freqs: Tensor, mask: Tensor | None) -> Tensor:
        """x [B, L, D] -> [B, L, D]."""
        return self.nffn(x, self.mega(x, freqs, mask))


class Rope(nn.Module):
    """Angle from one position to the next, [dz / 2]."""

    def __init__(self, c: Any) -> None:
        super().__init__()
        width = c.z_dim // c.num_heads
        exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
        self.register_buffer("freqs", c.effective_rope_base**-exponents)


class Output(nn.Module):
    """Last norm and head."""

    def __init__(self, c: Any) -> None:
        super().__init__()
        self.final_norm = Norm(c, prior=True)
        self.output = nn.Linear(c.model_dim, c.effective_output_size, bias=False)


class OriginalLM(nn.Module):
    """The language model; ``config`` is anything with the fields of `MegalodonConfig`."""

    def __init__(self, config: Any, dtype: torch.dtype = torch.float64) -> None:
        """Draw every parameter at random, away from what it starts with."""
        super().__init__()
        self.c = config
        self.embed = nn.Embedding(config.vocab_size, config.model_dim)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.output, self.rope = Output(config), Rope(config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise / math.sqrt(noise.shape[1]) if noise.ndim == 2 else parameter + 0.3 * noise)
        if config.share_emb:
            self.output.output.weight = self.embed.weight
        self.to(dtype)

    def forward(self, input_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits [B, L, V] of ids [B, L]; mask True = valid."""
        x = self.embed(input_ids)
        x = x * math.sqrt(self.c.model_dim) if self.c.scale_emb else x
        for layer in self.layers:
            x = layer(x, self.rope.freqs.to(statistics_dtype(x)), mask)
        return self.output.output(self.output.final_norm.over_time(x, mask))

    def loss(self, input_ids: Tensor) -> Tensor:
        """Mean cross-entropy of every token but the first."""
        logits = self(input_ids)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), input_ids[:, 1:].flatten())
