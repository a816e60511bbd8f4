"""Small models with every parameter random, in JAX and in PyTorch, shared by the model tests."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from megalodon_jax import MegalodonConfig, MegalodonForCausalLM
from megalodon_jax.parameters import map_parameters, named_parameters
from megalodon_jax.precision import is_sensitive

SIZES = {
    "vocab_size": 64,
    "model_dim": 32,
    "num_layers": 2,
    "num_heads": 2,
    "z_dim": 16,
    "value_dim": 48,
    "ffn_hidden_dim": 40,
    "cema_ndim": 4,
    "chunk_size": 8,
    "norm_num_groups": 4,
}

VARIANTS = {
    "default": {},
    "everything on": {
        "swiglu": True,
        "rescale_nffn": True,
        "scale_emb": True,
        "output_size": 50,
        "rope_base": 500.0,
        "pad_token_id": None,
    },
    "no affine": {"norm_affine": False},
}

LENGTH = 21


def config(**changes) -> MegalodonConfig:
    return MegalodonConfig(**{**SIZES, **changes})


@functools.cache
def build(**changes) -> MegalodonForCausalLM:
    """A model with all parameters random: no zero initial value hides a mistake."""
    r = np.random.default_rng(0)

    def draw(name, leaf):
        scale = 1.0 if "cema" in name or is_sensitive(name) or name.endswith("bias") else 2.0
        value = r.normal(size=leaf.shape) * scale * (0.3 if leaf.ndim == 1 else leaf.shape[-1] ** -0.5)
        return jnp.asarray(leaf + value.astype(np.float32).astype(leaf.dtype))

    return map_parameters(draw, MegalodonForCausalLM(config(**changes), key=jax.random.key(0)))


def with_config(model: MegalodonForCausalLM, **changes) -> MegalodonForCausalLM:
    """The same parameters under a changed config."""
    weights, changed = named_parameters(model), dataclasses.replace(model.config, **changes)
    return map_parameters(lambda name, _: weights[name], MegalodonForCausalLM(changed, key=jax.random.key(0)))


def assert_same(first: MegalodonForCausalLM, second: MegalodonForCausalLM) -> None:
    """The same parameters, bit for bit."""
    a, b = named_parameters(first), named_parameters(second)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes(), name


def ids(batch: int = 2, length: int = LENGTH, seed: int = 0):
    return jnp.asarray(np.random.default_rng(seed).integers(1, 50, (batch, length)), jnp.int32)


def to_torch(model, oracle, dtype):
    """The PyTorch oracle with the weights of the JAX model."""
    from megalodon_jax.convert import convert_jax_to_torch

    twin = oracle.MegalodonForCausalLM(oracle.OracleConfig.from_any(model.config), dtype=dtype)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in convert_jax_to_torch(model).items()}
    twin.load_state_dict(state, strict=True)
    assert all(p.dtype == dtype for p in twin.parameters())
    return twin
