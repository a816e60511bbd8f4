"""normalized_rotary and its call with attention: against the float64 oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import normalized_rotary, normalized_rotary_attention
from reference import oracle_numpy
from reference import oracle_numpy_rotary as oracle
from reference.normalized_rotary import angles, digit_angles, inv_freq
from tests import cases
from tests.tolerance import assert_close


def inputs(r, length: int, depth: int = 6):
    """z, scale, shift of two rows and three heads."""
    return cases.normal(r, 2, length, 3, depth), cases.normal(r, 2, 3, depth), cases.normal(r, 2, 3, depth)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rows", [False, True])
def test_values_and_gradients(rows, interleaved):
    r = cases.rng(0)
    given = inputs(r, 17)
    positions = np.asarray([[5], [900]] if rows else 3) + np.arange(17)
    fixed = {"positions": positions, "eps": 1e-3, "base": 500.0, "interleaved": interleaved}
    fixed |= {"scale_offset": 0.5, "scale_factor": -1.5} if interleaved else {}
    op = lambda *a: normalized_rotary(*a, **fixed | {"positions": jnp.asarray(positions)})  # noqa: E731
    (q, k), pullback = jax.vjp(op, *map(jnp.asarray, given))
    expected = oracle.normalized_rotary(*given, **fixed)
    for name, value, right in zip("qk", (q, k), expected, strict=True):
        assert_close(name, value, right, units=60)  # angles of 900 are rounded
    dq, dk = (cases.normal(r, *q.shape) for _ in range(2))
    gradients = oracle.normalized_rotary_vjp(*given, **fixed, dq=dq, dk=dk)
    for (name, right), value in zip(gradients.items(), pullback((jnp.asarray(dq), jnp.asarray(dk))), strict=True):
        assert_close(f"d{name}", value, right, units=60)


def test_the_adjoint_is_the_derivative():
    """The oracle's gradients, by central differences."""
    r = cases.rng(1)
    given = [a.astype(np.float64) for a in inputs(r, 2, depth=4)]
    dq, dk = (r.normal(size=given[0].shape) for _ in range(2))
    fixed = {"positions": np.arange(2), "interleaved": True, "scale_offset": 1.0, "scale_factor": 0.3}

    def loss(*given):
        q, k = oracle.normalized_rotary(*given, **fixed)
        return (q * dq).sum() + (k * dk).sum()

    gradients = oracle.normalized_rotary_vjp(*given, **fixed, dq=dq, dk=dk)
    for number, gradient in enumerate(gradients.values()):
        step = r.normal(size=gradient.shape)
        there, back = (
            [*given[:number], given[number] + move, *given[number + 1 :]] for move in (1e-6 * step, -1e-6 * step)
        )
        np.testing.assert_allclose((loss(*there) - loss(*back)) / 2e-6, (gradient * step).sum(), rtol=1e-6)


def test_angles_at_any_position():
    """In float32 position times frequency is wrong by 0.03 at a million, and means nothing at the end of int32."""
    few = np.arange(2048)
    any_ = np.concatenate([few, -few, cases.rng(2).integers(-(2**31), 2**31, 2000), [2**31 - 1, 10**6]])
    for positions, bound in ((few, 2.5e-5), (any_, 2e-4)):
        of_digits = map(jnp.asarray, digit_angles(256, 1e4))
        found = np.asarray(angles(jnp.asarray(positions, jnp.int32), of_digits), np.float64)
        wrong = found - positions[:, None] * inv_freq(256, 1e4)
        assert np.abs(np.remainder(wrong + np.pi, 2 * np.pi) - np.pi).max() < bound


@pytest.mark.parametrize("kind", cases.KINDS)
def test_attention_in_one_call(kind):
    """Positions start anew in each chunk of each document; the oracle takes others, which give the same."""
    r, length, chunk = cases.rng(3), 29, 8
    given, v, tokens = inputs(r, length), cases.normal(r, 2, length, 3, 5), cases.tokens(r, kind, 2, length)
    z, scale, shift = map(jnp.asarray, given)
    options = {"scale_offset": 1.0, "scale_factor": 0.5}
    o = normalized_rotary_attention(z, jnp.asarray(v), scale, shift, chunk_size=chunk, **tokens, **options)
    q, k = oracle.normalized_rotary(*given, positions=np.arange(length), **options)
    assert_close("o", o, oracle_numpy.chunked_attention(q, k, v, chunk_size=chunk, **tokens), units=30)
