"""linear_cross_entropy: against the float64 oracle, dtypes, sums that go on, tiles, that it has no derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import LinearTiles, compile_for, explain, linear_cross_entropy, use_tiles
from reference import oracle_numpy_cross_entropy as oracle
from tests import cross_entropy_laws as laws
from tests import kernel_parity
from tests.tolerance import assert_close

NAMES = ("losses", "dhidden", "dweight")


def test_values():
    given = laws.arrays(0)
    for name, found, expected in zip(
        NAMES, laws.everything(None, *given), oracle.linear_cross_entropy(*given), strict=True
    ):
        assert_close(name, found, expected)


def test_the_oracle_s_gradients_are_the_derivative():
    """By central differences."""
    hidden, weight, targets, factors, _ = (np.asarray(array) for array in laws.arrays(1))
    hidden, weight = hidden.astype(np.float64), weight.astype(np.float64)
    r = np.random.default_rng(2)
    moves = r.normal(size=hidden.shape), r.normal(size=weight.shape)
    loss = lambda step: oracle.linear_cross_entropy(  # noqa: E731
        hidden + step * moves[0], weight + step * moves[1], targets, factors
    )[0].sum()
    _, *gradients = oracle.linear_cross_entropy(hidden, weight, targets, factors)
    slope = sum((gradient * move).sum() for gradient, move in zip(gradients, moves, strict=True))
    np.testing.assert_allclose((loss(1e-6) - loss(-1e-6)) / 2e-6, slope, rtol=1e-6)


@pytest.mark.parametrize("implementation", kernel_parity.first(["xla", "triton_interpret"], 1))
def test_dtypes(implementation):
    found = laws.everything(implementation, *laws.arrays(3, jnp.bfloat16))
    assert [array.dtype for array in found] == [jnp.float32, jnp.bfloat16, jnp.float32]


@pytest.mark.thorough
def test_parts_of_the_tokens_add_up():
    *tokens, so_far = laws.arrays(4)
    hidden, weight, targets, factors = tokens
    _, _, whole = linear_cross_entropy(*tokens, so_far=so_far)
    for part in (slice(0, 10), slice(10, None)):
        _, _, so_far = linear_cross_entropy(hidden[part], weight, targets[part], factors[part], so_far=so_far)
    assert_close("dweight", so_far, whole)


@pytest.mark.parametrize("implementation", ["xla", "triton_interpret"])
def test_results_have_no_derivative(implementation):
    hidden, *given, _ = laws.arrays(6)
    loss = lambda hidden: jnp.sum(linear_cross_entropy(hidden, *given, implementation=implementation)[0])  # noqa: E731
    with pytest.raises(TypeError, match="linear_cross_entropy: its results have no derivatives"):
        jax.grad(loss)(hidden)


def test_tiles():
    *given, _ = laws.arrays(7)
    split = LinearTiles(64, 32, 16, 4, 2, num_splits=3)
    with compile_for("sm_90"), use_tiles(linear_cross_entropy_dhidden=split):
        table = str(explain(linear_cross_entropy, *given))
    assert "linear_cross_entropy_dhidden: 64 x 32, 16 terms, 4 warps, 2 stages, 3 splits (override)" in table
    with use_tiles(linear_cross_entropy_dweight=split), pytest.raises(ValueError, match="sums are not split"):
        linear_cross_entropy(*given, implementation="triton_interpret")


@pytest.mark.parametrize("target", [-1, 9])
def test_a_target_out_of_range_counts_for_nothing_or_is_an_error(target):
    hidden, weight = jnp.ones((3, 4), jnp.float32), jnp.ones((9, 4), jnp.float32)
    targets = jnp.asarray([0, target, 8], jnp.int32)
    losses, _, _ = linear_cross_entropy(hidden, weight, targets, jnp.asarray([1.0, 0.0, 1.0]))
    assert losses[1] == 0
    with pytest.raises(ValueError, match=r"targets \(where factors are not 0\) must be in \[0, 8\]"):
        linear_cross_entropy(hidden, weight, targets, jnp.ones(3))
