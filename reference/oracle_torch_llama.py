"""An independent PyTorch oracle of the Llama baseline, written from its equations.

    x = embed[ids];   per layer  x = x + attn(rms(x));   x = x + ffn(rms(x));   logits = rms(x) W^T
    attn(x)[i] = o(sum_j softmax_{j <= i}(q_i . k_j / sqrt(K)) v_j)   with q, k turned by their positions
    ffn(x) = down(silu(gate x) * up x)
    rms(x) = x / sqrt(mean(x^2) + eps) * weight

Feature j and feature j + K/2 of a head are a complex number, which position t turns by t theta^(-2 j / K). Names of
parameters are those of `megalodon_jax.baselines.Llama`; runs in the dtype of its parameters.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """Causal attention with rotary embedding."""

    def __init__(self, dim: int, heads: int, dim_head: int, theta: float) -> None:
        super().__init__()
        self.heads, self.theta = heads, theta
        self.q, self.k, self.v = (nn.Linear(dim, heads * dim_head, bias=False) for _ in range(3))
        self.o = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (layer(x).view(batch, length, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = self.turn(q) @ self.turn(k).mT / math.sqrt(q.shape[-1])
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        o = scores.masked_fill(later, -math.inf).softmax(-1) @ v
        return self.o(o.transpose(1, 2).reshape(batch, length, -1))

    def turn(self, x: Tensor) -> Tensor:
        """Features [..., L, K] turned by their positions."""
        real, imag = x.chunk(2, dim=-1)
        pairs = real.shape[-1]
        rates = self.theta ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angle = (torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * rates).to(x.dtype)
        turned = torch.complex(real, imag) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([turned.real, turned.imag], dim=-1)


class FeedForward(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(dim, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """One layer."""

    def __init__(self, dim: int, heads: int, dim_head: int, hidden: int, theta: float, eps: float) -> None:
        super().__init__()
        self.attn_norm, self.ffn_norm = RMSNorm(dim, eps), RMSNorm(dim, eps)
        self.attn, self.ffn = Attention(dim, heads, dim_head, theta), FeedForward(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class Backbone(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, c) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(c.vocab_size, c.dim), RMSNorm(c.dim, c.norm_eps)
        blocks = (Block(c.dim, c.heads, c.dim_head, c.ffn_dim, c.rope_theta, c.norm_eps) for _ in range(c.depth))
        self.layers = nn.ModuleList(blocks)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class Llama(nn.Module):
    """The language model; `config` has the fields of `LlamaConfig`."""

    def __init__(self, config) -> None:
        super().__init__()
        self.model = Backbone(config)
        self.lm_head = None if config.tied_embedding else nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [B, L, V] of ids [B, L]."""
        head = self.model.embed if self.lm_head is None else self.lm_head
        return F.linear(self.model(ids), head.weight)

    def loss(self, ids: Tensor) -> Tensor:
        """Mean cross-entropy of the next token."""
        return F.cross_entropy(self(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
