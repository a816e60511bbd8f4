"""Weights to and from PyTorch (needs torch). The names are megalodon-hf's, and so are ours: no tensor is transposed.

Two names of a PyTorch state dict have no leaf here: `lm_head.weight` of a tied model, which must equal the embedding,
and the rotary frequencies `...inner.rope.inv_freq`, which must match the config.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.model import MegalodonForCausalLM
from megalodon_jax.parameters import map_parameters, named_parameters
from megalodon_jax.precision import ensure_sensitive_param_dtype, is_sensitive

StateDict = dict[str, Any]


def convert_jax_to_torch(
    model: MegalodonForCausalLM, *, dtype: torch.dtype | None = None, include_rope_inv_freq: bool = False
) -> StateDict:
    """State dict of CPU tensors that megalodon-hf loads with `strict=True`.

    Args:
        model: the JAX model.
        dtype: of everything but the sensitive parameters, which are always float32; float32 if None.
        include_rope_inv_freq: add the rotary frequencies, which a strict load does not expect.
    """
    tensors = {
        name: torch.from_numpy(np.array(leaf.astype(jnp.float32))).to(
            torch.float32 if dtype is None or is_sensitive(name) else dtype
        )
        for name, leaf in named_parameters(model).items()
    }
    if model.tied:
        tensors["lm_head.weight"] = tensors["model.embed.weight"].clone()
    if include_rope_inv_freq:
        for name, frequencies in _rope_frequencies(model).items():
            tensors[name] = torch.from_numpy(frequencies.copy()).to(dtype or torch.float32)
    return tensors


def save_safetensors(
    model: MegalodonForCausalLM,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    include_rope_inv_freq: bool = False,
) -> None:
    """Write `convert_jax_to_torch(...)` as a .safetensors file."""
    tensors = convert_jax_to_torch(model, dtype=dtype, include_rope_inv_freq=include_rope_inv_freq)
    temporary = Path(path).with_name(Path(path).name + ".tmp")
    save_file(tensors, temporary)
    temporary.replace(path)


def load_weights_from_torch(model: MegalodonForCausalLM, state_dict: Mapping[str, Any]) -> MegalodonForCausalLM:
    """The model with every parameter taken from `state_dict` (torch tensors or arrays), in the model's own dtypes.

    Sensitive parameters come out as float32.

    Raises:
        KeyError: a parameter is missing.
        ValueError: a tensor of another shape, an unknown key, or a tied head or rotary table that does not match.
    """
    expected = named_parameters(model)
    for name in expected:
        if name not in state_dict:
            raise KeyError(f"Missing key in state_dict: {name}")
    config = model.config
    unknown = sorted(set(state_dict) - set(expected) - set(_rope_frequencies(model)) - {"lm_head.weight"})
    if unknown:
        hint = ""
        if any(".fc3." in name for name in unknown) and not config.swiglu:
            hint = " Checkpoint includes SwiGLU weights but config.swiglu=False."
        elif any("norm." in name for name in unknown) and not config.norm_affine:
            hint = " Checkpoint includes affine norm weights but norm_affine=False."
        elif any(name.startswith("model.layers.") for name in unknown):
            hint = f" Layer count mismatch? The config has {config.num_layers} layers."
        raise ValueError(f"Unknown keys in state_dict: {', '.join(unknown[:5])} ({len(unknown)} in all).{hint}")

    def take(name: str, leaf):
        value = _as_numpy(state_dict[name])
        if value.shape != leaf.shape:
            raise ValueError(f"Shape mismatch for '{name}': expected {leaf.shape}, got {value.shape}")
        return jnp.asarray(value).astype(leaf.dtype)

    if model.tied and "lm_head.weight" in state_dict:
        head, embedding = _as_numpy(state_dict["lm_head.weight"]), _as_numpy(state_dict["model.embed.weight"])
        if head.shape != embedding.shape or not np.array_equal(head, embedding):
            raise ValueError("lm_head.weight differs from the embedding, but this config ties them (share_emb=False?)")
    for name, frequencies in _rope_frequencies(model).items():
        if name in state_dict and not np.allclose(_as_numpy(state_dict[name]), frequencies, rtol=1e-2):
            raise ValueError(f"{name} does not match rope_base={config.effective_rope_base}")
    return ensure_sensitive_param_dtype(map_parameters(take, model))


def load_from_pretrained(path: str | Path, config: MegalodonConfig, dtype=None, *, key) -> MegalodonForCausalLM:
    """A model of `config` with the weights of a .safetensors file (any other suffix: a `torch.save` state dict).

    Args:
        path: the file.
        config: must match the checkpoint.
        dtype: of everything but the sensitive parameters, which stay float32; replaces config.param_dtype, which is
            what None means.
        key: PRNG key of the skeleton that is filled.

    Raises:
        FileNotFoundError: no such file.
        KeyError, ValueError: as in `load_weights_from_torch`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"Checkpoint not found: {path}")
    if path.suffix == ".safetensors":
        state_dict: Any = load_file(path)
    else:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in ("state_dict", "model"):
            if isinstance(state_dict.get(wrapper), dict):
                state_dict = state_dict[wrapper]
    if dtype is not None:
        config = dataclasses.replace(config, param_dtype=dtype)
    return load_weights_from_torch(MegalodonForCausalLM(config, key=key), state_dict)


def _as_numpy(value) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        # NumPy has no bfloat16 of its own; float32 holds every bfloat16 and float16 exactly.
        return value.float().numpy() if value.dtype in (torch.bfloat16, torch.float16) else value.numpy()
    return np.asarray(value)


def _rope_frequencies(model: MegalodonForCausalLM) -> dict[str, np.ndarray]:
    return {
        f"model.layers.{i}.attn.inner.rope.inv_freq": layer.attn.inner.rotary.inv_freq
        for i, layer in enumerate(model.model.layers)
    }
