"""Block: y = x + FFN(LayerNorm(attention_half(x))); the residual starts at the block input: "two-hop"."""

import equinox as eqx
import jax
from jaxtyping import Array, Bool, Float, Int

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.fused_layers import is_fused, with_rounded_weights
from megalodon_jax.layers.attention import MegalodonAttention
from megalodon_jax.layers.complex_ema import Coefficients
from megalodon_jax.layers.dropout import split
from megalodon_jax.layers.feedforward import NormalizedFFN
from megalodon_jax.types import LayerCache


class MegalodonBlock(eqx.Module):
    """Attention half and feed-forward half with the two-hop residual."""

    attn: MegalodonAttention
    ffn: NormalizedFFN
    layer_id: int = eqx.field(static=True)

    def __init__(self, config: MegalodonConfig, layer_id: int, *, key):
        self.layer_id = layer_id
        attention_key, ffn_key = jax.random.split(key)
        shared = {
            "norm_eps": config.norm_eps,
            "norm_affine": config.norm_affine,
            "dropout": config.dropout,
            "hidden_dropout": config.hidden_dropout,
            "param_dtype": config.param_dtype,
            "compute_dtype": config.compute_dtype,
            "accum_dtype": config.accum_dtype,
            "gemm_backend": config.gemm_backend,
            "init_mode": config.init_mode,
            "variant": config.variant,
        }
        self.attn = MegalodonAttention.with_init(
            config.model_dim, config.z_dim, config.value_dim, config.num_heads, config.cema_ndim, config.chunk_size,
            config.norm_num_groups,
            rope_base=config.effective_rope_base, max_cache_len=config.effective_max_cache_len,
            cache_unbounded=config.cache_unbounded, attention_dropout=config.attention_dropout,
            dropout_mode=config.attention_dropout_mode, key=attention_key, **shared,
        )  # fmt: skip
        self.ffn = NormalizedFFN.with_init(
            config.model_dim, config.ffn_hidden_dim,
            swiglu=config.swiglu, rescale=config.rescale_nffn, layer_id=layer_id, key=ffn_key, **shared,
        )  # fmt: skip

    def __call__(
        self,
        x: Float[Array, "B L D"],
        cache: LayerCache | None = None,
        mask: Bool[Array, "B L"] | None = None,
        return_cache: bool = False,
        deterministic: bool = True,
        key=None,
        *,
        segment_ids: Int[Array, "B L"] | None = None,
        position_ids: Int[Array, "B L"] | None = None,
        scale: Float[Array, ""] | None = None,
        coefficients: Coefficients | None = None,
    ) -> tuple[Float[Array, "B L D"], LayerCache | None]:
        """Block output and, if asked for, the new cache; `scale` replaces the feed-forward half's own, `coefficients`
        are those of the EMA if formed already.

        With cache or `return_cache` the tokens that `mask` lets through have to stand in front of the others; the
        model moves them there.
        """
        attention_key, ffn_key = split(key, 2)
        attn, ffn = self.attn, self.ffn
        if is_fused(attn.gemm_backend, x):
            attn, ffn = with_rounded_weights((attn, ffn), attn.compute_dtype)
        middle, new_cache = attn(
            x, cache, mask, return_cache, deterministic, attention_key,
            segment_ids=segment_ids, position_ids=position_ids, coefficients=coefficients,
        )  # fmt: skip
        return ffn(middle, x, deterministic, ffn_key, scale=scale), new_cache
