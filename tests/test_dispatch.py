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
    explain,
    fused_linear,
    linear_cross_entropy,
    round_weights,
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


def test_one_token_is_left_to_xla_whichever_axis_tokens_are_along():
    S = jax.ShapeDtypeStruct

    def chosen(op, *shapes, **options) -> str:
        given = [S(shape, dtype) for shape, dtype in shapes]
        return next(row.implementation for row in explain(op, *given, **options).rows if row.chosen)

    def head(tokens: int, features: int):
        shapes = (tokens, features), (9, features), (tokens,), (tokens,)
        return zip(shapes, (jnp.float32, jnp.float32, jnp.int32, jnp.float32), strict=True)

    with compile_for("sm_90"):
        for tokens, expected in ((1, "xla"), (2, "triton")):
            assert chosen(fused_linear, ((2, tokens, 1), jnp.float32), ((3, 1), jnp.float32)) == expected
            assert chosen(linear_cross_entropy, *head(tokens, 1)) == expected
            assert chosen(linear_cross_entropy, *head(tokens, 5)) == expected
        assert chosen(round_weights, ((3, 1), jnp.float32)) == "triton"


def test_more_than_2_31_logits_are_left_to_xla():
    S = jax.ShapeDtypeStruct
    arrays = S((2**16, 4), jnp.bfloat16), S((2**15, 4), jnp.bfloat16), S((2**16,), jnp.int32), S((2**16,), jnp.float32)
    with compile_for("sm_90"):
        rows = {row.implementation: row for row in explain(linear_cross_entropy, *arrays).rows}
    assert rows["xla"].chosen
    assert "2147483648 logits are too many" in rows["triton"].reason
