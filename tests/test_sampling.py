"""Drawing tokens: what top_k, top_p and min_p leave."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax import sample_token


def test_top_k_keeps_exactly_k_of_equals():
    logits = jnp.zeros((2000, 8))
    drawn = np.asarray(sample_token(logits, jax.random.key(0), top_k=3))
    assert set(drawn.tolist()) == {0, 1, 2}
    assert set(np.asarray(sample_token(logits, jax.random.key(0), top_k=1)).tolist()) == {0}


def test_keys():
    logits = jnp.zeros((1, 8))
    with pytest.raises(ValueError, match="key is required"):
        sample_token(logits, None)
    with pytest.raises(TypeError, match="key must be a PRNG key"):
        sample_token(logits, 3)
    assert sample_token(logits, None, temperature=0.0).tolist() == [0]


def test_top_p_keeps_the_token_that_crosses():
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]])).repeat(2000, 0)
    draw = lambda **kw: set(np.asarray(sample_token(logits, jax.random.key(1), **kw)).tolist())  # noqa: E731
    assert draw(top_p=0.6) == {0, 1}
    assert draw(top_p=0.01) == {0}
    assert draw(top_p=1.0) == {0, 1, 2, 3}
    # With top_k the mass is that of the k best: 0.5 / 0.8 = 0.625 > 0.6.
    assert draw(top_p=0.6, top_k=2) == {0}
    assert draw(temperature=0.0) == {0}
    assert draw(min_p=0.2) == {0, 1, 2}  # of the likeliest: 0.1
    assert draw(min_p=0.5) == {0, 1}
    assert draw(min_p=1.0) == {0}
    # The temperature comes first: at 0.5 the probabilities are squared, 0.15^2 < 0.2 0.5^2.
    assert draw(min_p=0.2, temperature=0.5) == {0, 1}
    assert draw(min_p=0.05, top_k=2) == {0, 1}
