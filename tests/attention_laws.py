"""Laws of chunked_attention that hold to the bit, on any rung: isolation of documents, causality, masked keys; and that
any launch shape gives the same."""

import jax
import jax.numpy as jnp
import numpy as np

from bench import parity
from bench.ops.attention import KERNELS
from pallas_kernels import AttentionTiles, chunked_attention, use_tiles
from tests import cases

CHUNK, WIDTH = 8, 20
TILES = AttentionTiles(16, 32, 16, 16, 1, 1)
# Every kernel of one launch with the same tiles: square, tall and wide, larger than a chunk and than the sequence.
LAUNCH_SHAPES = (
    AttentionTiles(16, 16, 32, 16, 1, 1),
    AttentionTiles(64, 16, 16, 32, 2, 2),
    AttentionTiles(16, 64, 32, 16, 4, 1),
    AttentionTiles(128, 128, 16, 16, 4, 2),
)
# Documents begin inside tiles and chunks of the sequence; the first two are longer than two chunks of their own.
_DOCUMENTS = np.repeat([1, 2, 0, 3], [33, 30, 5, 22])[None].astype(np.int32)


def launched(tiles: AttentionTiles):
    """Every kernel launched with these tiles."""
    return use_tiles(**dict.fromkeys(KERNELS, tiles))


def arrays(seed: int, length: int) -> tuple[jax.Array, ...]:
    """q, k, v and do of one row and two heads."""
    r = cases.rng(seed)
    return tuple(jnp.asarray(cases.normal(r, 1, length, 2, size)) for size in (12, 12, WIDTH, WIDTH))


def with_gradients(implementation, q, k, v, do, **tokens):
    """o, dq, dk, dv."""
    op = lambda *qkv: chunked_attention(*qkv, chunk_size=CHUNK, implementation=implementation, **tokens)  # noqa: E731
    o, pullback = jax.vjp(op, q, k, v)
    return o, *pullback(do)


def check_isolation(rung: str) -> None:
    """Changing one document changes no bit of another."""
    given = arrays(1, _DOCUMENTS.size)

    def packed(implementation, *given):
        return with_gradients(implementation, *given, segment_ids=jnp.asarray(_DOCUMENTS))

    with launched(TILES):
        before = parity.run(rung, packed, *given)
        for document in (1, 2, 3):
            inside = _DOCUMENTS[0] == document
            after = parity.run(rung, packed, *(array.at[:, inside].multiply(-30.0) for array in given))
            for old, new in zip(before, after, strict=True):
                np.testing.assert_array_equal(old[:, ~inside], new[:, ~inside])
                assert not np.array_equal(old, new)


def check_causality(rung: str) -> None:
    """No bit of o depends on a later token, and none of o or a gradient on another chunk."""
    *qkv, do = arrays(2, 45)
    with launched(TILES):
        before = parity.run(rung, with_gradients, *qkv, do)
        for t in (5, 26):
            changed = parity.run(rung, with_gradients, *(array.at[:, t:].multiply(-30.0) for array in qkv), do)
            np.testing.assert_array_equal(changed[0][:, :t], before[0][:, :t])
            assert not np.array_equal(changed[0], before[0])
            begin, end = t // CHUNK * CHUNK, (t // CHUNK + 1) * CHUNK
            alone = parity.run(rung, with_gradients, *(array.at[:, begin:end].multiply(-30.0) for array in qkv), do)
            for old, new in zip(before, alone, strict=True):
                np.testing.assert_array_equal(new[:, :begin], old[:, :begin])
                np.testing.assert_array_equal(new[:, end:], old[:, end:])
                assert not np.array_equal(new, old)


def check_masked_keys(rung: str, kind: str) -> None:
    """What a masked key and its value hold reaches nothing, NaN included; a query without a key gives 0."""
    tokens = cases.tokens(cases.rng(3), kind, 1, 45)
    tokens["mask"] = tokens["mask"].at[:, :3].set(False)  # the first queries have no key
    valid = tokens["mask"] & (tokens.get("segment_ids", jnp.ones((1, 45), jnp.int32)) != 0)
    q, k, v, do = arrays(4, 45)

    def run(implementation, q, k, v, do):
        return with_gradients(implementation, q, k, v, do, **tokens)

    with launched(TILES):
        clean, poisoned = (
            parity.run(rung, run, q, *(jnp.where(valid[..., None, None], array, bad) for array in (k, v)), do)
            for bad in (0.0, jnp.nan)
        )
    for value, expected in zip(poisoned, clean, strict=True):
        np.testing.assert_array_equal(value, expected)
    o, dq, dk, dv = clean
    assert not o[:, :3].any()
    assert not dq[:, :3].any()
    assert not dk[:, ~np.asarray(valid[0])].any()
    assert not dv[:, ~np.asarray(valid[0])].any()


def check_masked_values_of_a_gate(rung: str) -> None:
    """Neither what a masked value is made of nor its bias: NaN there reaches no result and no gradient."""
    q, k, v, do = arrays(7, 45)
    mask = jnp.ones((1, 45), bool).at[:, 20:30].set(False)
    bias = jnp.ones((2, WIDTH), jnp.float32)

    def run(implementation, v):
        def op(q, k, v, gate, v_bias, gate_bias):
            gating = {"v_activation": "silu", "v_bias": v_bias, "gate": gate, "gate_bias": gate_bias}
            return chunked_attention(q, k, v, chunk_size=CHUNK, mask=mask, implementation=implementation, **gating)

        o, pullback = jax.vjp(op, q, k, v, do, bias, bias)
        return o, *pullback(do)

    with launched(TILES):
        clean, poisoned = (parity.run(rung, run, jnp.where(mask[..., None, None], v, bad)) for bad in (0.0, jnp.nan))
    for value, expected in zip(poisoned, clean, strict=True):
        np.testing.assert_array_equal(value, expected)


def check_continuation(rung: str) -> None:
    """Any split into calls gives the same up to rounding; what is in the cache beside its keys reaches nothing."""
    q, k, v, _ = arrays(6, 45)

    def run(implementation, *given):
        cache = dict(zip(("cached_k", "cached_v", "cached_length"), given[3:], strict=False))
        return chunked_attention(*given[:3], chunk_size=CHUNK, implementation=implementation, **cache)

    with launched(TILES):
        whole = parity.run(rung, run, q, k, v)
        for split in (1, CHUNK, 13, 40):
            held, later = slice(split // CHUNK * CHUNK, split), slice(split, None)
            length = split - held.start
            room = (jnp.full((1, CHUNK + 3, *a.shape[2:]), jnp.nan).at[:, :length].set(a[:, held]) for a in (k, v))
            rest = parity.run(rung, run, *(a[:, later] for a in (q, k, v)), *room, jnp.full((1,), length))
            np.testing.assert_allclose(rest, whole[:, later], rtol=2e-5, atol=2e-5)


def check_launch_shape(rung: str, tiles: AttentionTiles) -> None:
    """Any tiles give the same up to rounding, packed and not."""
    given = arrays(5, _DOCUMENTS.size)
    for tokens in ({}, {"segment_ids": jnp.asarray(_DOCUMENTS)}):
        run = lambda implementation, *given, tokens=tokens: with_gradients(implementation, *given, **tokens)  # noqa: E731
        with launched(tiles):
            found = parity.run(rung, run, *given)
        for value, expected in zip(found, parity.run("xla", run, *given), strict=True):
            np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-5 * max(1.0, parity.scale(expected)))
