"""Float32 products ask for the highest precision in the CUDA lowering of reference, ops and model."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from megalodon_jax import MegalodonConfig, MegalodonForCausalLM
from pallas_kernels import (
    chunked_attention,
    complex_ema,
    feature_norm,
    fused_linear,
    linear_cross_entropy,
    normalized_rotary,
    timestep_norm,
)

S = jax.ShapeDtypeStruct
F, C = jnp.float32, jnp.complex64
IDS = S((2, 80), jnp.int32)
HEADS = S((2, 80, 2, 8), F)
EMA = (S((2, 80, 6), F), S((6, 3), F), S((6, 3), C), S((6, 3), C), S((6,), F), S((2, 6, 3), C))


def default_precision_dots(text: str) -> tuple[int, int]:
    """(float32 products in StableHLO text, those that do not ask for HIGHEST on both sides)."""
    dots = [line for line in text.splitlines() if "dot_general" in line and re.search(r"x(f32|complex<f32>)>", line)]
    return len(dots), sum("precision = [HIGHEST, HIGHEST]" not in line for line in dots)


def cuda_text(f, *args) -> str:
    return jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def gradient(f):
    """f and the pullback of a float result, so that the backward's products are in the text too."""

    def both(*args):
        floats = lambda a: jnp.issubdtype(a.dtype, jnp.inexact)  # noqa: E731
        moving = [i for i, a in enumerate(args) if floats(a)]

        def of(*values):
            full = list(args)
            for i, value in zip(moving, values, strict=True):
                full[i] = value
            return f(*full)

        y, pullback = jax.vjp(of, *(args[i] for i in moving))
        return pullback(y)

    return both


OPS = {
    "complex_ema": (lambda x, p, q, g, o, h: complex_ema(x, p, q, g, o, h0=h), EMA),
    "complex_ema packed": (
        lambda x, p, q, g, o, h, ids: complex_ema(x, p, q, g, o, h0=h, segment_ids=ids),
        (*EMA, IDS),
    ),
    "timestep_norm": (lambda x: timestep_norm(x, num_groups=2), (EMA[0],)),
    "chunked_attention": (lambda q, k, v: chunked_attention(q, k, v, chunk_size=16), (HEADS,) * 3),
    "chunked_attention packed": (
        lambda q, k, v, ids: chunked_attention(q, k, v, chunk_size=16, segment_ids=ids),
        (*(HEADS,) * 3, IDS),
    ),
    "normalized_rotary": (
        lambda z: normalized_rotary(z, *[jnp.ones((2, *z.shape[2:]))] * 2, positions=jnp.arange(z.shape[1])),
        (HEADS,),
    ),
    "fused_linear": (
        lambda x, w, b: fused_linear(x, w, x_bias=b, activation="silu"),
        (EMA[0], S((4, 6), F), S((6,), F)),
    ),
    "feature_norm": (lambda x, w: feature_norm(x, w, w, centred=True), (EMA[0], S((6,), F))),
}


def test_gradients_beside_losses():
    args = S((8, 6), F), S((4, 6), F), S((8,), jnp.int32), S((8,), F), S((4, 6), F)
    f = lambda h, w, y, a, s: linear_cross_entropy(h, w, y, a, so_far=s)  # noqa: E731
    assert default_precision_dots(cuda_text(f, *args)) == (3, 0)


@pytest.mark.parametrize("name", OPS)
def test_ops(name):
    f, args = OPS[name]
    dots, default = default_precision_dots(cuda_text(gradient(f), *args))
    assert default == 0
    assert dots > 0 or name in ("timestep_norm", "complex_ema packed", "normalized_rotary", "feature_norm")


def test_tf32_is_an_opt_in():
    f = lambda q, k, v: chunked_attention(q, k, v, chunk_size=16, precision="tf32")  # noqa: E731
    dots, default = default_precision_dots(cuda_text(f, *(HEADS,) * 3))
    assert dots == default == 2


def abstract_model():
    config = MegalodonConfig(
        vocab_size=16, model_dim=8, num_layers=1, num_heads=2, z_dim=8, value_dim=8, ffn_hidden_dim=8, cema_ndim=2,
        chunk_size=16, norm_num_groups=2, swiglu=True, attention_dropout=0.1,
    )  # fmt: skip
    model = eqx.filter_eval_shape(MegalodonForCausalLM, config, key=jax.random.key(0))
    return eqx.partition(model, lambda leaf: isinstance(leaf, S))


@pytest.mark.parametrize("deterministic", [True, False])
def test_training(deterministic):
    parameters, static = abstract_model()

    def loss(p, ids):
        model = eqx.combine(p, static)
        return model.compute_loss(ids, ids, None, -100, deterministic, jax.random.key(0), loss_chunk_size=32)

    dots, default = default_precision_dots(cuda_text(jax.value_and_grad(loss), parameters, IDS))
    assert dots > 20
    assert default == 0


@pytest.mark.parametrize("length", [1, 5, 40])
def test_cached_calls(length):
    parameters, static = abstract_model()

    def run(p, ids, more):
        model = eqx.combine(p, static)
        _, cache = model(ids, return_cache=True)
        return model(more, cache=cache, return_cache=True)

    dots, default = default_precision_dots(cuda_text(run, parameters, IDS, S((2, length), jnp.int32)))
    assert dots > 20
    assert default == 0
