"""config.json in three formats: ours, megalodon-hf's, and that of the CUDA release.

    ours         the fields of `MegalodonConfig`
    hf           those that megalodon-hf knows, flat, with "model_type": "megalodon" and what transformers adds
    original     those that the release knows, under "model", beside other sections

Fields have the same names everywhere but for `use_checkpoint`: gradient_checkpointing in hf, layerwise_ckpt in the
release. hf ties every head of the embedding's width, whatever its share_emb says. "he" of the release is our "kaiming".
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.convert.consolidation import CONSOLIDATION, release_dtype
from megalodon_jax.json_files import read_object

CONFIG = "config.json"
_SHARED = (
    "vocab_size", "model_dim", "num_layers", "num_heads", "z_dim", "value_dim", "ffn_hidden_dim", "cema_ndim",
    "chunk_size", "norm_num_groups", "norm_eps", "norm_affine", "rope_base", "swiglu", "rescale_nffn", "scale_emb",
    "dropout", "attention_dropout", "hidden_dropout", "init_mode", "output_size",
)  # fmt: skip
_HF_ONLY = ("max_cache_len", "cache_unbounded", "pad_token_id", "bos_token_id", "eos_token_id", "max_positions")
_SETTINGS = ("layerwise_ckpt", "efficient_attn", "custom_bwd", "loss_parallel")  # of the release, not of its models


def read_config(path: str | os.PathLike, param_dtype: str | None = None) -> MegalodonConfig:
    """The config in a file of any of the three formats, with another `param_dtype` if given.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not one of the formats, a field out of range, or one that we do not know.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; give one with the config of the model")
    fields = read_object(path)
    release = isinstance(fields.get("model"), dict)
    if release and param_dtype is None:
        param_dtype = release_dtype(path.with_name(CONSOLIDATION))
    try:
        if release:
            fields = _from_original(fields["model"], param_dtype)
        elif "model_type" in fields:
            fields = _from_hf(fields, param_dtype)
        elif param_dtype is not None:
            fields["param_dtype"] = param_dtype
        return MegalodonConfig.from_json(json.dumps(fields))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def _from_hf(fields: dict[str, Any], param_dtype: str | None) -> dict[str, Any]:
    if fields["model_type"] != "megalodon":
        raise ValueError(f"model_type is {fields['model_type']!r}, expected 'megalodon'")
    known = {name: fields[name] for name in (*_SHARED, *_HF_ONLY) if name in fields}
    if known.get("max_cache_len") == -1:
        known["max_cache_len"] = None
    given = str(fields.get("dtype") or fields.get("torch_dtype") or "float32").removeprefix("torch.")
    dtype = _not_float16(param_dtype or given)
    return known | {"use_checkpoint": fields.get("gradient_checkpointing", False), "param_dtype": dtype}


def _from_original(fields: dict[str, Any], param_dtype: str | None) -> dict[str, Any]:
    known = (*_SHARED, "share_emb", *_SETTINGS)
    if unknown := sorted(fields.keys() - set(known)):
        raise ValueError(f"unknown field {', '.join(unknown)} of the model; the fields are {', '.join(sorted(known))}")
    if fields.get("vocab_size", -1) == -1:
        raise ValueError("vocab_size is -1, left to the tokenizer; write its size into the config, or give another one")
    if (attention := fields.get("efficient_attn")) not in (None, "swift", "fused"):
        raise ValueError(f"efficient_attn must be null, 'swift' or 'fused', got {attention!r}")
    given = {"num_layers": 8, "ffn_hidden_dim": 2048, "init_mode": "he", "share_emb": False, **fields}
    kept = {name: value for name, value in given.items() if name not in _SETTINGS}
    return kept | {
        "variant": "original",
        "pad_token_id": None,
        "param_dtype": _not_float16(param_dtype or "float32"),
        "init_mode": "kaiming" if kept["init_mode"] == "he" else kept["init_mode"],
        "use_checkpoint": given.get("layerwise_ckpt", False),
        "attention_dropout_mode": "post_softmax" if attention is None else "dropkey",
    }


def _not_float16(dtype: str) -> str:
    if dtype == "float16":
        raise ValueError(
            "the weights are float16, in which the EMA and the statistics overflow; "
            "choose another dtype (--dtype, or param_dtype=)"
        )
    return dtype


def hf_json(config: MegalodonConfig) -> str:
    """config.json for megalodon-hf.

    Raises:
        ValueError: a model that megalodon-hf does not have.
    """
    if config.variant != "hf":
        raise ValueError("megalodon-hf has no models of variant='original': its norm over time is another function")
    if not config.tied and config.effective_output_size == config.vocab_size:
        raise ValueError("megalodon-hf ties a head of vocab_size outputs to the embedding; this one is not tied")
    fields = _fields(config, (*_SHARED, *_HF_ONLY))
    fields |= {"gradient_checkpointing": config.use_checkpoint, "torch_dtype": config.param_dtype.name}
    if config.init_mode == "kaiming":  # which megalodon-hf refuses to be built with
        fields["init_mode"] = "gaussian"
    return json.dumps({"architectures": ["MegalodonForCausalLM"], "model_type": "megalodon", **fields}, indent=2) + "\n"


def original_json(config: MegalodonConfig) -> str:
    """config.json for the CUDA release.

    Raises:
        ValueError: a model that the release does not have.
    """
    if config.variant != "original":
        raise ValueError("the CUDA release has no models of variant='hf': its norm over time is another function")
    if config.param_dtype.name not in ("float32", "bfloat16"):
        raise ValueError(f"checkpoints of the CUDA release are float32 or bfloat16, got {config.param_dtype.name}")
    fields = _fields(config, _SHARED) | {"share_emb": config.tied, "layerwise_ckpt": config.use_checkpoint}
    fields["init_mode"] = "he" if config.init_mode == "kaiming" else config.init_mode
    fields["efficient_attn"] = "fused" if config.attention_dropout_mode == "dropkey" else None
    return json.dumps({"model": fields, "tokenizer": {"path": None}, "model_parallel_size": 1}, indent=2) + "\n"


def _fields(config: MegalodonConfig, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(config).items() if name in names}
