"""Small baselines with every parameter random, in JAX and in PyTorch."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from megalodon_jax.baselines import GPT, GPTConfig, Llama, LlamaConfig
from megalodon_jax.baselines.gpt2 import gpt2_name
from megalodon_jax.parameters import named_parameters

SLOTS = 24
KINDS = {
    "llama": {},
    "gpt": {},
    "llama untied": {"tied_embedding": False, "rope_theta": 100.0},
    "gpt exact": {"bias": False, "gelu": "exact", "norm_eps": 1e-3},
}


def config(kind: str, **changes) -> LlamaConfig | GPTConfig:
    changes = KINDS[kind] | changes
    if kind.startswith("gpt"):
        return GPTConfig(**{"block_size": SLOTS, "vocab_size": 64, "n_layer": 2, "n_head": 2, "n_embd": 24, **changes})
    sizes = {"vocab_size": 64, "dim": 24, "depth": 2, "heads": 3, "dim_head": 8, "max_seq_len": SLOTS}
    return LlamaConfig(**{**sizes, **changes})


@functools.cache
def build(kind: str, **changes) -> Llama | GPT:
    """A model with all parameters random: no zero or one hides a mistake."""
    r, cfg = np.random.default_rng(0), config(kind, **changes)

    def draw(path, like):
        scale = 0.3 if like.ndim == 1 else 1.5 * like.shape[-1] ** -0.5
        middle = 1.0 if jax.tree_util.keystr(path).endswith("norm.weight") else 0.0
        return jnp.asarray(middle + scale * r.normal(size=like.shape), like.dtype)

    shapes = eqx.filter_eval_shape(GPT if isinstance(cfg, GPTConfig) else Llama, cfg, key=jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)  # nothing to compile


@eqx.filter_jit
def logits(model: Llama | GPT, ids, **tokens):
    """Of a whole sequence, compiled: calls one operation at a time compile every one of them."""
    return model(ids, **tokens)[0]


def twin_name(kind: str, name: str) -> str:
    """The name in the PyTorch twin of a parameter."""
    return f"transformer.{gpt2_name(name)[0]}" if kind.startswith("gpt") else name


def twin(kind: str, dtype):
    """The PyTorch oracle with the same weights."""
    import torch

    from reference import oracle_torch_gpt, oracle_torch_llama

    model = build(kind)
    cls = oracle_torch_gpt.GPT if kind.startswith("gpt") else oracle_torch_llama.Llama
    oracle = cls(model.config).to(dtype)
    weights = {twin_name(kind, name): torch.tensor(np.asarray(a)) for name, a in named_parameters(model).items()}
    oracle.load_state_dict(weights, strict=True)
    return oracle
