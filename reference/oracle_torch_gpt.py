"""An independent PyTorch oracle of the GPT baseline, written from its equations.

    x = wte[ids] + wpe[0 .. L-1];   per layer  x = x + attn(ln_1 x);   x = x + mlp(ln_2 x);   logits = ln_f(x) wte^T
    attn(x)[i] = c_proj(sum_j softmax_{j <= i}(q_i . k_j / sqrt(K)) v_j),   (q, k, v) = c_attn x
    mlp(x) = c_proj(gelu(c_fc x))

with gelu(x) = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, or the exact x Phi(x). Names of parameters are those
of GPT-2 files; weights of linear layers are (out, in), where those files have (in, out). No dropout.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Causal attention."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width, bias), nn.Linear(width, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (a.view(batch, length, self.heads, -1).transpose(1, 2) for a in self.c_attn(x).split(width, dim=-1))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        o = scores.masked_fill(later, -math.inf).softmax(-1) @ v
        return self.c_proj(o.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    """Feed-forward layer."""

    def __init__(self, width: int, bias: bool, exact: bool) -> None:
        super().__init__()
        self.exact = exact
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width, bias), nn.Linear(4 * width, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.c_fc(x)
        if self.exact:
            gate = 1 + torch.erf(h / math.sqrt(2))
        else:
            gate = 1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))
        return self.c_proj(h * gate / 2)


class Block(nn.Module):
    """One layer."""

    def __init__(self, config) -> None:
        super().__init__()
        width, bias = config.n_embd, config.bias
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, config.norm_eps, bias=bias) for _ in range(2))
        self.attn, self.mlp = Attention(width, config.n_head, bias), MLP(width, bias, config.gelu == "exact")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Embeddings, layers and final norm."""

    def __init__(self, config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, config.norm_eps, bias=config.bias)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for layer in self.h:
            x = layer(x)
        return self.ln_f(x)


class GPT(nn.Module):
    """The language model; `config` has the fields of `GPTConfig`."""

    def __init__(self, config) -> None:
        super().__init__()
        self.transformer = Transformer(config)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [B, L, V] of ids [B, L]."""
        return F.linear(self.transformer(ids), self.transformer.wte.weight)

    def loss(self, ids: Tensor) -> Tensor:
        """Mean cross-entropy of the next token."""
        return F.cross_entropy(self(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
