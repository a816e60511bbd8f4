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

import torch
from torch import Tensor, nn

from reference.oracle_torch_layers import (
    AttentionCache,
    Cache,
    Inputs,
    LayerCache,
    MegalodonAttention,
    NormalizedFFN,
    OracleConfig,
    TimestepNorm,
)
from reference.oracle_torch_ops import (
    NormState,
    chunked_attention,
    complex_ema,
    rotary_table,
    run_positions,
    run_starts,
    statistics_dtype,
    timestep_norm,
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
