"""Laws of complex_ema that hold up to rounding, of the reference and of the kernels alike."""

import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import complex_ema
from tests import cases
from tests.tolerance import assert_close

LENGTH = 70
on_both = pytest.mark.parametrize("implementation", ["xla", "triton_interpret"])
few = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 10_000)


def arrays(seed, length=LENGTH):
    return tuple(map(jnp.asarray, cases.ema(cases.rng(seed), 1, length, 2, 2)))


def run(implementation, x, p, q, gamma, omega, h0, **tokens):
    """(y, h); every law goes through this, so that each shape compiles once."""
    return complex_ema(x, p, q, gamma, omega, h0=h0, return_state=True, implementation=implementation, **tokens)


@on_both
@few
@given(seed=seeds)
def test_linear_in_x_and_state(implementation, seed):
    """Superposition: of inputs, of states, and of the two."""
    x, p, q, gamma, omega, h0 = arrays(seed)
    other_x, other_h = arrays(seed + 1)[0], arrays(seed + 1)[5]
    op = lambda x, h: run(implementation, x, p, q, gamma, omega, h)  # noqa: E731
    both = op(x + 2 * other_x, h0 + 2 * other_h)
    for whole, one, other in zip(both, op(x, h0), op(other_x, other_h), strict=True):
        assert_close("one + 2 other", whole, one + 2 * other)
    for whole, inputs, state in zip(op(x, h0), op(x, 0 * h0), op(0 * x, h0), strict=True):
        assert_close("inputs + state", whole, inputs + state)


@on_both
@few
@given(seed=seeds)
def test_packed_is_linear_in_x(implementation, seed):
    x, p, q, gamma, omega, _ = arrays(seed)
    other = arrays(seed + 1)[0]
    tokens = cases.tokens(cases.rng(seed), "segments", 1, LENGTH)
    op = lambda x: complex_ema(x, p, q, gamma, omega, implementation=implementation, **tokens)  # noqa: E731
    assert_close("one + 2 other", op(x + 2 * other), op(x) + 2 * op(other))


@on_both
@few
@given(seed=seeds, cut=st.sampled_from([7, 32]))
def test_split_invariance(implementation, seed, cut):
    """run(x) = run(x1), then run(x2 | state)."""
    x, p, q, gamma, omega, h0 = arrays(seed)
    y, h = run(implementation, x, p, q, gamma, omega, h0)
    first, middle = run(implementation, x[:, :cut], p, q, gamma, omega, h0)
    second, last = run(implementation, x[:, cut:], p, q, gamma, omega, middle)
    assert_close("y", jnp.concatenate([first, second], 1), y)
    assert_close("h", last, h)


@on_both
@few
@given(seed=seeds, shift=st.integers(1, 40))
def test_time_shift(implementation, seed, shift):
    x, p, q, gamma, omega, h0 = arrays(seed)
    op = lambda x: run(implementation, x, p, q, gamma, omega, 0 * h0)[0]  # noqa: E731
    shifted = jnp.pad(x, ((0, 0), (shift, 0), (0, 0)))[:, :LENGTH]
    assert_close("y", op(shifted)[:, shift:], op(x)[:, : LENGTH - shift])


@on_both
@few
@given(seed=seeds)
def test_conjugate_symmetry(implementation, seed):
    """Conjugating q, gamma and the state conjugates the state that comes out, and leaves y as it is."""
    x, p, q, gamma, omega, h0 = arrays(seed)
    y, h = run(implementation, x, p, q, gamma, omega, h0)
    mirrored, state = run(implementation, x, p, *map(jnp.conj, (q, gamma)), omega, jnp.conj(h0))
    assert_close("y", mirrored, y)
    assert_close("h", jnp.conj(state), h)
