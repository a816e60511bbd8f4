"""Sizes of a model as its weights tell them: which fields of a config do not fit a checkpoint, with both values."""

import math
import re
from collections.abc import Mapping

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.files import Signature

_AXES = {  # fields of the config that are the first axes of a tensor
    "model.embed.weight": ("vocab_size", "model_dim"),
    "model.layers.0.attn.wz.weight": ("z_dim",),
    "model.layers.0.attn.wv.weight": ("value_dim",),
    "model.layers.0.attn.cema.gamma_real": ("model_dim", "cema_ndim"),
    "model.layers.0.ffn.fc1.weight": ("ffn_hidden_dim",),
    "lm_head.weight": ("output_size",),
}
ROTARY = "model.layers.0.attn.inner.rope.inv_freq"
_PARTS = {"swiglu": ".fc3.", "norm_affine": "rmsnorm."}  # fields that say whether some parameters are there
_HF_BIASES = ("ffn.fc1.bias", "ffn.fc2.bias", "attn.wh2.bias")  # which the release's model does not have
_SENTENCES = {
    ("swiglu", True): "Checkpoint includes SwiGLU weights but config.swiglu=False",
    ("norm_affine", True): "Checkpoint includes affine norm weights but norm_affine=False",
}


def require_fit(given: Mapping[str, Signature], config: MegalodonConfig) -> None:
    """Compare the config with the shapes of the weights.

    The number of heads leaves no trace in the weights but a rotary table, where there is one.

    Raises:
        ValueError: fields of the config that the weights contradict, all of them, with both values.
    """
    found: dict[str, int | bool | str] = {}
    for name, fields in _AXES.items():
        if name in given:
            found |= dict(zip(fields, given[name][0], strict=False))
    layers = {match[1] for name in given if (match := re.search(r"\blayers\.(\d+)\.", name))}
    found["num_layers"] = len(layers)
    if layers:
        found |= {field: any(part in name for name in given) for field, part in _PARTS.items()}
        found["variant"] = "hf" if any(name.endswith(_HF_BIASES) for name in given) else "original"
    if pairs := math.prod(given[ROTARY][0]) if ROTARY in given else 0:
        found["num_heads"] = config.z_dim // (2 * pairs)
    if config.variant == "original" and layers:
        found["rescale_nffn"] = any(name.endswith((".rescale", "nffn.alpha")) for name in given)
    expected = {field: getattr(config, field) for field in found} | {"output_size": config.effective_output_size}
    wrong = {field: value for field, value in found.items() if value != expected[field]}
    if wrong:
        raise ValueError("; ".join(_sentence(field, expected[field], value) for field, value in wrong.items()))


def _sentence(field: str, expected: int | bool | str, found: int | bool | str) -> str:
    title = "Layer count mismatch: " if field == "num_layers" else ""
    general = f"{title}{field} is {expected} in the config and {found} in the weights"
    return _SENTENCES.get((field, bool(found)), general) if isinstance(found, bool) else general
