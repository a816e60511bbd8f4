"""chunked_attention against the float64 oracle: values, gradients, masks, documents, empty rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import chunked_attention
from reference import oracle_numpy as oracle
from tests import cases
from tests.tolerance import assert_close


def inputs(r, length, *, batch=2, heads=2, key_dim=6, value_dim=10):
    shapes = ((key_dim,), (key_dim,), (value_dim,))
    return tuple(cases.normal(r, batch, length, heads, *shape) for shape in shapes)


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize(("length", "chunk"), [(1, 4), (8, 8), (37, 5), (24, 64)])
def test_values_and_gradients(length, chunk, kind):
    r = cases.rng(length)
    q, k, v = inputs(r, length)
    kwargs = {"chunk_size": chunk, **cases.tokens(r, kind, 2, length)}
    o, pullback = jax.vjp(lambda *a: chunked_attention(*a, **kwargs), *map(jnp.asarray, (q, k, v)))
    assert_close("o", o, oracle.chunked_attention(q, k, v, **kwargs))
    do = cases.normal(r, *o.shape)
    expected = oracle.chunked_attention_vjp(q, k, v, do=do, **kwargs)
    for (name, value), gradient in zip(expected.items(), pullback(jnp.asarray(do)), strict=True):
        assert_close(f"d{name}", gradient, value)


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize(("length", "chunk", "slots"), [(1, 4, 4), (23, 5, 5), (9, 64, 20), (24, 8, 20)])
def test_continuation(length, chunk, slots, kind):
    """Rows with no cached key, with all there is room for, and one in between."""
    r = cases.rng(length)
    q, k, v = inputs(r, length, batch=3)
    cached = dict(zip(("cached_k", "cached_v"), inputs(r, slots, batch=3)[1:], strict=True))
    most = min(slots, chunk)
    tokens = {"cached_length": jnp.asarray([0, most, most // 2]), **cases.tokens(r, kind, 3, length)}
    kwargs = {"chunk_size": chunk, **tokens}
    f = lambda *a: chunked_attention(*a[:3], cached_k=a[3], cached_v=a[4], **kwargs)  # noqa: E731
    o, pullback = jax.vjp(f, *map(jnp.asarray, (q, k, v, *cached.values())))
    assert_close("o", o, oracle.chunked_attention(q, k, v, **cached, **kwargs))
    do = cases.normal(r, *o.shape)
    expected = oracle.chunked_attention_vjp(q, k, v, **cached, do=do, **kwargs)
    for (name, value), gradient in zip(expected.items(), pullback(jnp.asarray(do)), strict=True):
        assert_close(f"d{name}", gradient, value)


def test_a_traced_cached_length_stays_within_the_cache_and_the_chunk():
    q, k, v = map(jnp.asarray, inputs(cases.rng(8), 10))
    cached = dict(zip(("cached_k", "cached_v"), map(jnp.asarray, inputs(cases.rng(9), 4)[1:]), strict=True))
    attend = jax.jit(lambda n: chunked_attention(q, k, v, chunk_size=6, **cached, cached_length=n))
    np.testing.assert_array_equal(attend(jnp.asarray([-3, 9])), attend(jnp.asarray([0, 4])))


def test_fully_masked_rows_give_zero_and_no_gradient():
    q, k, v = map(jnp.asarray, inputs(cases.rng(0), 12))
    mask = jnp.asarray(np.arange(12) >= 6)[None].repeat(2, 0)  # the first chunk of 4 sees nothing
    loss = lambda q, k, v: chunked_attention(q, k, v, chunk_size=4, mask=mask)  # noqa: E731
    o, pullback = jax.vjp(loss, q, k, v)
    np.testing.assert_array_equal(np.asarray(o[:, :4]), 0)
    dq, dk, dv = pullback(jnp.ones_like(o))
    for gradient in (dq[:, :6], dk[:, :6], dv[:, :6]):
        np.testing.assert_array_equal(np.asarray(gradient), 0)
    assert all(np.isfinite(np.asarray(g)).all() for g in (dq, dk, dv))


def test_masked_keys_may_hold_anything():
    q, k, v = map(jnp.asarray, inputs(cases.rng(1), 16))
    mask = jnp.asarray(cases.rng(2).random((2, 16)) > 0.4)
    poison = lambda a: jnp.where(mask[..., None, None], a, jnp.nan)  # noqa: E731
    f = lambda k, v: jnp.sum(chunked_attention(q, k, v, chunk_size=8, mask=mask) ** 2)  # noqa: E731
    clean = jax.value_and_grad(f, (0, 1))(k, v)
    dirty = jax.value_and_grad(f, (0, 1))(poison(k), poison(v))
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_packed_equals_documents_one_by_one():
    """Runs that start inside a grid block, and one longer than two chunks."""
    q, k, v = map(jnp.asarray, inputs(cases.rng(3), 50, batch=1))
    lengths = (5, 29, 16)
    ids = jnp.asarray(np.repeat([7, 2, 7], lengths)[None].astype(np.int32))
    o = chunked_attention(q, k, v, chunk_size=8, segment_ids=ids)
    start = 0
    for length in lengths:
        piece = slice(start, start + length)
        assert_close("document", o[:, piece], chunked_attention(q[:, piece], k[:, piece], v[:, piece], chunk_size=8))
        start += length


def test_bfloat16_accumulates_in_float32():
    q, k, v = (jnp.asarray(a).astype(jnp.bfloat16) for a in inputs(cases.rng(4), 64))
    o = chunked_attention(q, k, v, chunk_size=32)
    exact = oracle.chunked_attention(*(np.asarray(a.astype(jnp.float32)) for a in (q, k, v)), chunk_size=32)
    assert o.dtype == jnp.bfloat16
    assert_close("o", o.astype(jnp.float32), exact, dtype="bfloat16", units=1)


def test_no_score_matrix_larger_than_two_chunks():
    length, chunk = 64, 8
    q, k, v = map(jnp.asarray, inputs(cases.rng(5), length, batch=1, heads=1))
    for ids in (None, jnp.ones((1, length), jnp.int32)):
        f = lambda q, k, v, ids=ids: chunked_attention(q, k, v, chunk_size=chunk, segment_ids=ids).sum()  # noqa: E731
        text = str(jax.make_jaxpr(jax.grad(f, (0, 1, 2)))(q, k, v))
        assert f",{chunk},{chunk if ids is None else 2 * chunk}]" in text
        assert f"{length},{length}" not in text


def test_jvp_and_second_derivatives():
    q, k, v = map(jnp.asarray, inputs(cases.rng(6), 9))
    f = lambda q: jnp.sum(chunked_attention(q, k, v, chunk_size=4) ** 2)  # noqa: E731
    tangent = jnp.asarray(cases.normal(cases.rng(7), *q.shape))
    _, forward = jax.jvp(f, (q,), (tangent,))
    assert_close("jvp", forward, jnp.vdot(jax.grad(f)(q), tangent))
    assert np.isfinite(np.asarray(jax.jvp(jax.grad(f), (q,), (tangent,))[1])).all()
