"""Choosing an implementation: names, refusals, fallback, strictness, jit's cache key, the environment, explain."""

import logging

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels
from pallas_kernels import (
    KernelUnavailable,
    chunked_attention,
    compile_for,
    complex_ema,
    explain,
    fused_linear,
    normalized_rotary,
    normalized_rotary_attention,
    strict,
    timestep_norm,
    use_implementation,
)
from pallas_kernels import _dispatch as dispatch
from pallas_kernels import _settings as settings
from tests.tolerance import assert_close

X = jnp.ones((2, 8, 4))
P = jnp.ones((4, 3))
Q = jnp.full((4, 3), 0.5 + 0j)


def norm(x, **kwargs):
    return timestep_norm(x, num_groups=2, **kwargs)


def rotary(z, **kwargs):
    ones = jnp.ones((2, *z.shape[2:]))
    given = {"scale": ones, "shift": ones, "positions": jnp.arange(z.shape[1])} | kwargs
    return normalized_rotary(z, **given)


def in_one_call(z, **kwargs):
    ones = jnp.ones((2, *HEADS.shape[2:]))
    return normalized_rotary_attention(z, HEADS, ones, ones, **{"chunk_size": 4} | kwargs)


def test_none_and_xla_run_the_reference():
    assert jnp.array_equal(norm(X), norm(X, implementation="xla"))
    assert jnp.array_equal(norm(X), norm(X, implementation=("triton", "xla")))


def attention(x, **kwargs):
    """Head dims that no kernel takes."""
    wide = jnp.tile(x[:, :, None], 300)
    return chunked_attention(wide, wide, wide, chunk_size=4, **kwargs)


@pytest.mark.parametrize("implementation", ["triton", "triton_interpret", ("triton", "triton_interpret")])
def test_a_named_kernel_that_cannot_run_raises(implementation):
    with pytest.raises(KernelUnavailable, match="chunked_attention") as caught:
        attention(X, implementation=implementation)
    error = caught.value
    assert isinstance(error, NotImplementedError)
    assert error.op == "chunked_attention"
    assert "triton" in error.implementation
    assert error.reason
    assert "xla" in error.remedy


def test_without_a_gpu_a_kernel_refuses_and_says_how_to_build_for_one():
    with pytest.raises(KernelUnavailable, match="compile_for"):
        norm(X, implementation="triton")
    assert_close("y", norm(X, implementation=("triton", "triton_interpret")), norm(X))


@pytest.mark.parametrize("implementation", ["cuda", (), ("xla", "fast"), ("triton", None)])
def test_unknown_names_are_the_callers_mistake(implementation, unhooked):
    with pytest.raises(ValueError, match="'xla', 'triton', 'triton_interpret'"):
        norm(X, implementation=implementation)


def test_context_is_part_of_the_cache_key():
    """The same jitted function is traced again under other settings, and the first trace serves again afterwards."""
    traces = []

    @jax.jit
    def f(x):
        traces.append(settings.current())
        return norm(x)

    f(X), f(X)
    assert len(traces) == 1
    with use_implementation(timestep_norm="xla"):
        f(X)
    with compile_for("sm_90"):
        f.lower(X)
    assert [t.target for t in traces] == [None, None, "sm_90"]
    f(X)
    assert len(traces) == 3


def test_overrides_reach_the_choice_and_nest():
    with use_implementation(timestep_norm="triton"):
        with pytest.raises(KernelUnavailable):
            norm(X)
        norm(X, implementation="xla")
        with use_implementation(timestep_norm=None):
            norm(X)
    norm(X)


@pytest.mark.parametrize(("kwargs", "message"), [({"fft": "xla"}, "unknown op"), ({"complex_ema": "x"}, "must be")])
def test_bad_overrides(kwargs, message):
    with pytest.raises(ValueError, match=message), use_implementation(**kwargs):
        pass


def test_backward_is_chosen_with_the_forward():
    """A pullback called outside the context it was made in still belongs to that context."""
    with use_implementation(timestep_norm="xla"):
        _, pullback = jax.vjp(norm, X)
    with use_implementation(timestep_norm="triton"):
        pullback(X)


def test_strict_refuses_a_fallback_on_a_gpu_target_only():
    with strict():
        attention(X)
        with compile_for("sm_90"):
            with pytest.raises(KernelUnavailable, match='implementation="xla"'):
                attention(X)
            attention(X, implementation="xla")
            norm(X)
            with strict(False):
                attention(X)
    with pytest.raises(ValueError, match="sm_80"), compile_for("sm_10"):
        pass


def test_fallback_is_logged_once(caplog):
    dispatch._log_once.cache_clear()
    with caplog.at_level(logging.INFO, "pallas_kernels"), compile_for("sm_90"):
        attention(X), attention(X)
    assert len([r for r in caplog.records if "chunked_attention" in r.message]) == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, settings.Settings()),
        ({"PALLAS_KERNELS_STRICT": "1"}, settings.Settings(strict=True)),
        (
            {"PALLAS_KERNELS_IMPLEMENTATION": "complex_ema=xla, timestep_norm=triton"},
            settings.Settings(overrides=(("complex_ema", "xla"), ("timestep_norm", "triton"))),
        ),
    ],
)
def test_environment(environment, expected):
    assert settings.settings_from_environment(environment) == expected


@pytest.mark.parametrize(
    "environment",
    [
        {"PALLAS_KERNELS_STRICT": "yes"},
        {"PALLAS_KERNELS_IMPLEMENTATION": "xla"},
        {"PALLAS_KERNELS_IMPLEMENTATION": "ema=xla"},
        {"PALLAS_KERNELS_IMPLEMENTATION": "complex_ema=fast"},
    ],
)
def test_bad_environment(environment):
    with pytest.raises(ValueError, match="PALLAS_KERNELS"):
        settings.settings_from_environment(environment)


def test_explain_is_a_table_and_data():
    table = explain(norm_op := timestep_norm, jax.ShapeDtypeStruct((2, 8, 4), jnp.float32), num_groups=2)
    assert norm_op.__name__ == table.op
    rows = {row.implementation: row for row in table.rows}
    assert rows["xla"].chosen
    assert rows["xla"].available
    assert not rows["triton"].available
    assert rows["triton"].reason
    assert "xla" in str(table)
    named = explain(timestep_norm, X, num_groups=2, implementation="triton")
    assert not any(row.chosen for row in named.rows)


def test_explain_rejects_what_the_op_rejects(unhooked):
    with pytest.raises(ValueError, match="divisible"):
        explain(timestep_norm, X, num_groups=3)
    with pytest.raises(ValueError, match="complex_ema"):
        explain(print, X)


def test_public_names():
    for name in pallas_kernels.__all__:
        assert getattr(pallas_kernels, name).__doc__


HEADS = jnp.ones((2, 8, 1, 4))
BAD = {
    "rank": (ValueError, r"\[B, L, D\]", lambda: complex_ema(X[0], P, Q, Q)),
    "features": (ValueError, r"= \(4, 3\)", lambda: complex_ema(X, P[:3], Q, Q)),
    "states": (ValueError, "gamma", lambda: complex_ema(X, P, Q, Q[:, :2])),
    "empty": (ValueError, "empty", lambda: complex_ema(X[:, :0], P, Q, Q)),
    "real q": (TypeError, "complex64", lambda: complex_ema(X, P, P, Q)),
    "float16": (TypeError, "float16", lambda: complex_ema(X.astype(jnp.float16), P, Q, Q)),
    "int x": (TypeError, "float32 or bfloat16", lambda: complex_ema(X.astype(int), P, Q, Q)),
    "h0": (ValueError, "h0", lambda: complex_ema(X, P, Q, Q, h0=Q[None])),
    "omega": (ValueError, "omega", lambda: complex_ema(X, P, Q, Q, P[0])),
    "mask dtype": (TypeError, "mask must be bool", lambda: complex_ema(X, P, Q, Q, mask=jnp.ones((2, 8)))),
    "mask shape": (ValueError, "mask", lambda: complex_ema(X, P, Q, Q, mask=jnp.ones((2, 7), bool))),
    "segments": (TypeError, "segment_ids", lambda: complex_ema(X, P, Q, Q, segment_ids=jnp.ones((2, 8)))),
    "list": (TypeError, "array", lambda: complex_ema([1.0], P, Q, Q)),
    "groups": (ValueError, "divisible", lambda: timestep_norm(X, num_groups=3)),
    "no groups": (ValueError, "positive int", lambda: timestep_norm(X, num_groups=0)),
    "eps": (ValueError, "eps", lambda: timestep_norm(X, num_groups=2, eps=0.0)),
    "array eps": (TypeError, "Python number", lambda: timestep_norm(X, num_groups=2, eps=jnp.float32(1e-5))),
    "traced eps": (TypeError, "eps", lambda: jax.jit(lambda eps: timestep_norm(X, num_groups=2, eps=eps))(1e-5)),
    "statistics": (ValueError, "token_mean", lambda: timestep_norm(X, num_groups=2, statistics="mean")),
    "weight": (ValueError, "weight", lambda: timestep_norm(X, jnp.ones(3), num_groups=2)),
    "state": (TypeError, "count, mean, var", lambda: timestep_norm(X, num_groups=2, state=X)),
    "state shape": (
        ValueError,
        "state mean",
        lambda: timestep_norm(X, num_groups=2, state=(jnp.zeros(2, jnp.int32), P, P)),
    ),
    "key dim": (ValueError, "k must", lambda: chunked_attention(HEADS, HEADS[..., :3], HEADS, chunk_size=4)),
    "mixed": (TypeError, "v must", lambda: chunked_attention(HEADS, HEADS, HEADS.astype(jnp.bfloat16), chunk_size=4)),
    "half a cache": (
        ValueError,
        "Missing: cached_v, cached_length",
        lambda: chunked_attention(HEADS, HEADS, HEADS, chunk_size=4, cached_k=HEADS),
    ),
    "cached length": (
        ValueError,
        r"cached_length must be in \[0, 4\], got \[5",
        lambda: chunked_attention(
            *[HEADS] * 3, chunk_size=4, cached_k=HEADS, cached_v=HEADS, cached_length=jnp.full(HEADS.shape[0], 5)
        ),
    ),
    "no softmax dtype": (
        TypeError,
        "floating dtype, got None",
        lambda: chunked_attention(*[HEADS] * 3, chunk_size=4, softmax_dtype=None),
    ),
    "array rate": (
        ValueError,
        "Python number",
        lambda: chunked_attention(*[HEADS] * 3, chunk_size=4, dropout_rate=jnp.float32(0.1)),
    ),
    "both, segments": (
        ValueError,
        "segment_ids must have shape",
        lambda: in_one_call(HEADS, segment_ids=jnp.ones((2, 5), int)),
    ),
    "both, chunk": (ValueError, "chunk_size must be", lambda: in_one_call(HEADS, chunk_size=None)),
    "both, list": (TypeError, "z must be an array", lambda: in_one_call([1.0])),
    "cache dtype": (
        TypeError,
        "cached_k must be float32",
        lambda: chunked_attention(
            HEADS,
            HEADS,
            HEADS,
            chunk_size=4,
            cached_k=HEADS.astype(jnp.bfloat16),
            cached_v=HEADS,
            cached_length=jnp.zeros(HEADS.shape[0], jnp.int32),
        ),
    ),
    "softmax": (
        TypeError,
        "floating dtype, got",
        lambda: chunked_attention(HEADS, HEADS, HEADS, chunk_size=4, softmax_dtype=jnp.int32),
    ),
    "dropout": (
        ValueError,
        r"\[0, 1\], got 1.5",
        lambda: chunked_attention(HEADS, HEADS, HEADS, chunk_size=4, dropout_rate=1.5),
    ),
    "dropout key": (
        ValueError,
        "needs dropout_key",
        lambda: chunked_attention(HEADS, HEADS, HEADS, chunk_size=4, dropout_rate=0.5),
    ),
    "odd head": (ValueError, "head dim 3 is odd", lambda: rotary(HEADS[..., :3])),
    "scale": (ValueError, "scale must have shape", lambda: rotary(HEADS, scale=jnp.ones((1, *HEADS.shape[2:])))),
    "positions": (ValueError, "positions must", lambda: rotary(HEADS, positions=jnp.arange(3))),
    "float positions": (TypeError, "positions must", lambda: rotary(HEADS, positions=jnp.ones(HEADS.shape[1]))),
    "base": (ValueError, "base must be positive", lambda: rotary(HEADS, base=-1.0)),
    "weight of a product": (ValueError, "weight must have shape", lambda: fused_linear(X, jnp.ones((3, 5)))),
    "weight dtype": (TypeError, "float16 overflows", lambda: fused_linear(X, jnp.ones((3, 4), jnp.float16))),
    "bias of a product": (ValueError, "bias must have shape", lambda: fused_linear(X, P.T, jnp.ones(4))),
    "x_bias": (ValueError, "x_bias must have shape", lambda: fused_linear(X, P.T, x_bias=jnp.ones(3))),
    "residual": (ValueError, "residual must have shape", lambda: fused_linear(X, P.T, residual=X)),
    "residual dtype": (
        TypeError,
        "residual must be float32",
        lambda: fused_linear(X, jnp.eye(4), residual=X.astype(jnp.bfloat16)),
    ),
    "activation": (ValueError, "None, 'silu', got 'gelu'", lambda: fused_linear(X, P.T, activation="gelu")),
    "chunk": (ValueError, "chunk_size", lambda: chunked_attention(HEADS, HEADS, HEADS, chunk_size=0)),
    "precision": (ValueError, "tf32", lambda: chunked_attention(HEADS, HEADS, HEADS, chunk_size=4, precision="high")),
}


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    kind, message, call = BAD[name]
    with pytest.raises(kind, match=message):
        call()


def test_more_than_2_31_elements_is_refused(unhooked):
    big = jax.ShapeDtypeStruct((2**16, 2**15, 2), jnp.bfloat16)
    with pytest.raises(ValueError, match="2\\^31"):
        explain(timestep_norm, big, num_groups=2)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dropout_rate": 0.1, "dropout_key": jax.random.key(0)}, "dropout of attention weights (rate 0.1)"),
        ({"softmax_dtype": jnp.bfloat16}, "softmax in bfloat16"),
    ],
)
def test_what_attention_leaves_to_xla_is_explained(options, reason):
    heads = jnp.ones((1, 8, 1, 16))
    with compile_for("sm_90"):
        rows = {
            row.implementation: row for row in explain(chunked_attention, *[heads] * 3, chunk_size=4, **options).rows
        }
        assert rows["xla"].chosen
        for name in ("triton", "triton_interpret"):
            assert not rows[name].available
            assert reason in rows[name].reason
        assert chunked_attention(*[heads] * 3, chunk_size=4, **options).shape == heads.shape
        with strict(), pytest.raises(KernelUnavailable, match="left to XLA"):
            chunked_attention(*[heads] * 3, chunk_size=4, **options)


def test_attention_dropout_and_softmax_dtype_of_the_reference():
    heads = jax.random.normal(jax.random.key(1), (1, 64, 1, 16))
    plain, half, rounded, nothing = (
        chunked_attention(*[heads] * 3, chunk_size=64, dropout_key=jax.random.key(2), **options)
        for options in ({}, {"dropout_rate": 0.5}, {"softmax_dtype": jnp.bfloat16}, {"dropout_rate": 1.0})
    )
    assert not nothing.any()
    assert not jnp.allclose(half, plain, atol=0.1)
    assert 1e-4 < jnp.max(jnp.abs(rounded - plain)) < 0.1


def test_a_product_of_more_than_2_31_elements_is_left_to_xla():
    x, weight = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((2**10, 2**10, 4), (2**11, 4)))
    with compile_for("sm_90"):
        rows = {row.implementation: row for row in explain(fused_linear, x, weight).rows}
        assert rows["xla"].chosen
        assert "a result of 2147483648 elements" in rows["triton"].reason
        smaller = explain(fused_linear, jax.ShapeDtypeStruct((2**9, 2**10, 4), jnp.bfloat16), weight)
    chosen = next(row for row in smaller.rows if row.chosen)
    assert [launch.kernel for launch in chosen.launches] == [f"fused_linear_{k}" for k in ("forward", "dx", "dw")]
