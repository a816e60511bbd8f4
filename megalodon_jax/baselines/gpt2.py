"""Weights of GPT-2 from safetensors files.

    there, with or without "transformer." in front      here
    wte, wpe, ln_f                                      model.embed, model.position_embed, model.norm
    h.{i}.ln_1, h.{i}.ln_2                              model.layers.{i}.attn_norm, ffn_norm
    h.{i}.attn.c_attn, h.{i}.attn.c_proj                model.layers.{i}.attn.qkv, attn.out       (weights transposed)
    h.{i}.mlp.c_fc, h.{i}.mlp.c_proj                    model.layers.{i}.ffn.up, ffn.down         (weights transposed)
    lm_head.weight                                      no leaf: must equal wte.weight
    h.{i}.attn.bias, h.{i}.attn.masked_bias             no leaf: the causal mask

Files are untrusted: names, shapes and dtypes are compared with the config before a tensor is read.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from megalodon_jax.architectures import abstract_model
from megalodon_jax.baselines.assembling import assembled
from megalodon_jax.baselines.configs import GPTConfig
from megalodon_jax.baselines.gpt import GPT
from megalodon_jax.convert.config_files import CONFIG
from megalodon_jax.convert.loading import Tensors
from megalodon_jax.convert.pretrained import open_checkpoint
from megalodon_jax.convert.tensors import cast, require_finite
from megalodon_jax.json_files import read_object

_PREFIX, _HEAD, _EMBEDDING = "transformer.", "lm_head.weight", "wte.weight"
_MASKS = re.compile(r"h\.\d+\.attn\.(masked_)?bias")
_FLOATING = ("float32", "bfloat16", "float16", "float64")
_GELU = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "exact"}
_SIZES = ("n_layer", "n_head", "n_embd", "vocab_size")
_FIXED = {
    "model_type": "gpt2", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False, "tie_word_embeddings": True,
}  # fmt: skip
_PARTS = {
    "attn_norm": "ln_1", "attn.qkv": "attn.c_attn", "attn.out": "attn.c_proj",
    "ffn_norm": "ln_2", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj",
}  # fmt: skip
_ENDS = {"model.embed": "wte", "model.position_embed": "wpe", "model.norm": "ln_f"}


def load_gpt2(
    path: str | os.PathLike, *, dropout: float = 0.0, param_dtype: Any = jnp.float32, compute_dtype: Any = jnp.float32
) -> GPT:
    """A GPT with the weights of a GPT-2 checkpoint; its config is read from the config.json beside them.

    Args:
        path: a folder with model.safetensors, or several files and their index; or the file or index itself.
        dropout, param_dtype, compute_dtype: as in `GPTConfig`; a checkpoint says nothing of them that counts here.

    Raises:
        FileNotFoundError: no checkpoint, or no config.json beside it.
        KeyError: a parameter is missing.
        ValueError: a config of another function than `GPT`'s; a tensor of an unknown name, of another shape, not
            floating, with NaN or infinities, or too large for its dtype here; a head that is not the embedding; a file
            that is damaged, or no safetensors file.
    """
    path = Path(path)
    if path.is_file() and path.suffix not in (".safetensors", ".json"):
        raise ValueError(f"{path} is no safetensors file, nor an index of several")
    tensors = open_checkpoint(path)
    config = gpt2_config(path, dropout=dropout, param_dtype=param_dtype, compute_dtype=compute_dtype)
    given = {name.removeprefix(_PREFIX): name for name in tensors.signatures if not _is_mask(name)}
    if len(given) < sum(not _is_mask(name) for name in tensors.signatures):
        raise ValueError(f"{path} has a tensor twice, with {_PREFIX!r} in front and without")

    def read(name: str, like: jax.ShapeDtypeStruct) -> jax.Array:
        there, transposed = gpt2_name(name)
        value = tensors.read(given[there])
        require_finite(given[there], value)
        return jnp.array(cast(name, value.T if transposed else value, np.dtype(like.dtype)))

    _check(abstract_model(config)[1], given, tensors)
    return assembled(config, read)


def gpt2_config(path: str | os.PathLike, **options: Any) -> GPTConfig:
    """The config of a GPT-2 checkpoint; arguments and errors of its config.json as in `load_gpt2`."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"Checkpoint not found: {path}")
    fields = _config_fields((path if path.is_dir() else path.parent) / CONFIG)
    return GPTConfig(**fields, **options)


def gpt2_name(name: str) -> tuple[str, bool]:
    """The name in GPT-2 files, without "transformer.", of a parameter of `GPT`; and is it transposed there?"""
    stem, kind = name.rsplit(".", 1)
    if stem in _ENDS:
        return f"{_ENDS[stem]}.{kind}", False
    _, _, number, part = stem.split(".", 3)
    there = _PARTS[part]
    return f"h.{number}.{there}.{kind}", kind == "weight" and ".c_" in there


def _config_fields(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; the config of the model has to be beside its weights")
    fields = read_object(path)
    for name, expected in _FIXED.items():
        if fields.get(name, expected) != expected:
            raise ValueError(f"{path}: {name} must be {expected!r}, got {fields[name]!r}")
    if (inner := fields.get("n_inner")) not in (None, 4 * fields.get("n_embd", 0)):
        raise ValueError(f"{path}: n_inner must be null or 4 n_embd, got {inner!r}")
    if (activation := fields.get("activation_function", "gelu_new")) not in _GELU:
        raise ValueError(f"{path}: activation_function must be one of {', '.join(_GELU)}, got {activation!r}")
    length = "n_ctx" if "n_positions" not in fields and "n_ctx" in fields else "n_positions"
    if missing := [name for name in (*_SIZES, length) if name not in fields]:
        raise ValueError(f"{path}: {', '.join(missing)} is not in it")
    return {
        **{name: fields[name] for name in _SIZES},
        **{name: fields.get(name) for name in ("bos_token_id", "eos_token_id")},
        "block_size": fields[length],
        "norm_eps": fields.get("layer_norm_epsilon", 1e-5),
        "gelu": _GELU[activation],
    }


def _check(shapes: Mapping[str, jax.ShapeDtypeStruct], given: Mapping[str, str], tensors: Tensors) -> None:
    """Compare names, shapes and dtypes of tensors with those of the model; and a head with the embedding."""
    expected = {}
    for name, like in shapes.items():
        there, transposed = gpt2_name(name)
        expected[there] = like.shape[::-1] if transposed else like.shape
    for name in expected:
        if name not in given:
            raise KeyError(f"missing tensor: {name}")
    expected[_HEAD] = expected[_EMBEDDING]
    if unknown := sorted(given[name] for name in given.keys() - expected.keys()):
        raise ValueError(f"unknown tensors: {', '.join(unknown[:5])} ({len(unknown)} in all)")
    for name, full in given.items():
        shape, dtype = tensors.signatures[full]
        if shape != expected[name]:
            raise ValueError(f"{full} must have shape {expected[name]}, got {shape}")
        if dtype not in _FLOATING:
            raise ValueError(f"{full} must be floating, got {dtype}")
    if _HEAD in given and not np.array_equal(tensors.read(given[_HEAD]), tensors.read(given[_EMBEDDING])):
        raise ValueError(f"{_HEAD} differs from {_EMBEDDING}, but in GPT-2 they are one")


def _is_mask(name: str) -> bool:
    return _MASKS.fullmatch(name.removeprefix(_PREFIX)) is not None
