"""What two configs differ in, whichever way each says it."""

from collections.abc import Collection
from typing import Any

from megalodon_jax.config import MegalodonConfig

FUNCTION = (
    "variant", "vocab_size", "model_dim", "num_layers", "num_heads", "z_dim", "value_dim", "ffn_hidden_dim",
    "cema_ndim", "chunk_size", "norm_num_groups", "norm_eps", "norm_affine", "rope_base", "swiglu", "rescale_nffn",
    "scale_emb", "output_size", "share_emb", "pad_token_id",
)  # fmt: skip
"""Fields that say which function the weights are of, in whatever dtypes and calls it is computed."""


def resolved(config: MegalodonConfig) -> dict[str, Any]:
    """Every field with what it means: defaults that depend on other fields filled in."""
    effective = {
        "max_cache_len": config.effective_max_cache_len,
        "rope_base": config.effective_rope_base,
        "output_size": config.effective_output_size,
        "share_emb": config.tied,
    }
    if config.variant == "original":
        effective["pad_token_id"] = None  # embeds like any other
    return vars(config) | effective


def differences(
    first: MegalodonConfig, second: MegalodonConfig, fields: Collection[str] | None = None
) -> dict[str, tuple[Any, Any]]:
    """Both values of each field, or of these, that means something else in the other config."""
    a, b = resolved(first), resolved(second)
    return {name: (a[name], b[name]) for name in fields or a if a[name] != b[name]}
