"""Numbers of parameters from the sizes of a config, without a model."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megalodon_jax.config import MegalodonConfig


def parameter_counts(config: "MegalodonConfig") -> dict[str, int]:
    """How many parameters each part has, in all layers together; "total" is their sum."""
    c, original = config, config.variant == "original"
    dim, hidden = c.model_dim, c.ffn_hidden_dim
    time_norm = 2 * dim if original or c.norm_affine else 0
    biases = c.z_dim + 2 * c.value_dim + dim + (0 if original else dim)
    ffn_biases = 0 if original else hidden * (2 if c.swiglu else 1) + dim
    layer = {
        "timestep_norm": time_norm,
        "complex_ema": 4 * dim * c.cema_ndim + 2 * dim,
        "rms_norm": dim if c.norm_affine else 0,
        "projections": dim * (c.z_dim + 3 * c.value_dim + dim) + biases,
        "query_key_affine": 4 * c.z_dim,
        "ffn_norm": 2 * dim if c.norm_affine else 0,
        "ffn": dim * hidden * (3 if c.swiglu else 2) + ffn_biases,
        "ffn_rescale": dim if original and c.rescale_nffn else 0,
    }
    found = {
        "embedding": c.vocab_size * dim,
        **{name: c.num_layers * count for name, count in layer.items()},
        "final_norm": time_norm,
        "head": 0 if c.tied else c.effective_output_size * dim,
    }
    return {**found, "total": sum(found.values())}
