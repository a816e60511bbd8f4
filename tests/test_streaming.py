"""Streams: however one is cut into calls, the result is that of one call, and of each row alone."""

import dataclasses
import re

import equinox as eqx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from bench import parity
from megalodon_jax import index_cache, init_cache, trim_cache
from megalodon_jax.inference import decode_step, generate_stream
from megalodon_jax.layers import ChunkedAttention
from megalodon_jax.parameters import named_parameters
from tests import kernel_parity, models, streams
from tests.streams import MODES, step, stream
from tests.tolerance import MODEL_RELATIVE, assert_close, assert_policy, errors

LENGTH = 40  # five chunks


def fresh(model, batch: int):
    """A cache that is the same program for the first call as for the others."""
    return init_cache(model.config, batch, allocate_kv=True, allocate_norm=True, allocate_ema=True)


@pytest.mark.parametrize("mode", kernel_parity.first([*MODES], 1))
@pytest.mark.parametrize("pieces", kernel_parity.first([(5, 16), (21,), (1,) * 5 + (16,), (16,) + (1,) * 5], 1))
def test_any_cut_matches_torch_in_one_call(mode, pieces, torch_oracle):
    import torch

    model, ids = models.build(**MODES[mode]), models.ids()
    twin = models.to_torch(model, torch_oracle, torch.float64)
    with torch.no_grad():
        truth, _ = twin(torch.tensor(np.asarray(ids), dtype=torch.long), use_cache=True)
    logits, cache = stream(model, ids, pieces)
    assert errors(logits, truth.numpy())[0] < MODEL_RELATIVE
    assert cache.layer_caches[0].attn.count.tolist() == cache.layer_caches[1].position.tolist() == [21, 21]


def test_chunk_local_streaming_is_the_training_forward():
    model, ids = models.build(), models.ids()
    assert_close("logits", stream(model, ids, (5, 16))[0], model(ids)[0])


def cuts(check):
    """Call `check` with lengths of pieces, of which there are few, that make at most LENGTH tokens."""
    pieces = st.lists(st.sampled_from((1, 3, 8, 21)), min_size=LENGTH, max_size=LENGTH)

    @hypothesis.given(pieces.map(lambda all_: all_[: np.searchsorted(np.cumsum(all_), LENGTH, side="right")]))
    @hypothesis.settings(max_examples=20, deadline=None)
    def law(pieces):
        check(pieces)

    law()


@pytest.mark.parametrize("mode", MODES)
def test_any_cut_is_the_float64_model(mode):
    model, ids = models.build(num_layers=1, **MODES[mode]), models.ids(2, LENGTH)
    expected, start = streams.truth(mode, 2, LENGTH, num_layers=1), fresh(model, 2)

    def check(pieces):
        length = sum(pieces)
        logits, cache = stream(model, ids[:, :length], pieces, start)
        assert_close("logits", logits, expected[:, :length], units=300)
        assert cache.layer_caches[0].attn.count.tolist() == [length] * 2

    cuts(check)


@pytest.mark.thorough
@pytest.mark.parametrize("mode", MODES)
def test_any_cut_is_one_call_in_bfloat16(mode):
    """By the policy for kernels: errors of any cut beside those of one call."""
    model, ids = models.build(num_layers=1, compute_dtype="bfloat16", **MODES[mode]), models.ids(2, LENGTH)
    expected, start = streams.truth(mode, 2, LENGTH, num_layers=1), fresh(model, 2)
    whole, _ = step(model, ids, start)

    def check(pieces):
        length = sum(pieces)
        logits, _ = stream(model, ids[:, :length], pieces, start)
        assert_policy(
            *parity.compare_values(*({"logits": np.asarray(a[:, :length])} for a in (expected, logits, whole)))
        )

    cuts(check)


@pytest.mark.parametrize("mode", MODES)
def test_each_row_is_as_if_alone(mode):
    """Tokens may be missing anywhere in a call: rows are then at different positions, each in a chunk of its own."""
    model, ids = models.build(num_layers=1, **MODES[mode]), np.asarray(models.ids(3, LENGTH))
    expected = streams.truth(mode, 3, LENGTH, num_layers=1)
    start = fresh(model, 3)
    masks = st.lists(st.lists(st.booleans(), min_size=24, max_size=24), min_size=5, max_size=5)

    @hypothesis.given(masks)
    @hypothesis.settings(max_examples=20, deadline=None)
    def check(masks):
        seen, cache = np.zeros(3, int), start
        for mask in np.asarray(masks).reshape(5, 3, 8):
            given = np.full(mask.shape, 63)  # what is masked may be anything
            for row in range(3):
                given[row, mask[row]] = ids[row, seen[row] : seen[row] + mask[row].sum()]
            logits, cache = step(model, jnp.asarray(given), cache, jnp.asarray(mask))
            for row in range(3):
                right = expected[row, seen[row] : seen[row] + mask[row].sum()]
                if right.size:
                    assert_close("logits", logits[row, mask[row]], right, units=300)
            seen += mask.sum(1)
            assert cache.layer_caches[0].attn.count.tolist() == cache.final_norm.count.tolist() == seen.tolist()

    check()


def test_a_row_without_tokens_stays_as_it_is():
    model, ids = models.build(num_layers=1), models.ids(2, 13)
    _, cache = step(model, ids, None)
    for length in (1, 9):
        mask = jnp.zeros((2, length), bool).at[1].set(True)
        _, after = step(model, ids[:, :length], cache, mask)
        for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(cache), strict=True):
            np.testing.assert_array_equal(new[0], old[0])
            assert (np.asarray(new[1]) != np.asarray(old[1])).any()


def test_decoding_is_one_program_that_reuses_the_cache():
    model, ids = models.build(num_layers=1), models.ids()
    compiled = []

    @eqx.filter_jit
    def one(model, ids, cache):
        compiled.append(ids.shape)
        return model(ids, cache=cache, return_cache=True)

    _, cache = one(model, ids[:, :1], fresh(model, 2))
    for t in range(1, 20):
        _, cache = one(model, ids[:, t : t + 1], cache)
    assert len(compiled) == 1
    expected, _ = one(model, ids[:, 20:], cache)
    logits, _ = decode_step(model, ids[:, 20], cache)
    np.testing.assert_array_equal(logits, expected[:, 0])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(cache) if leaf.ndim > 1)


def test_no_call_compiles_again(compilations):
    """Across chunk boundaries, and for other tokens."""
    model, ids = models.build(num_layers=1), models.ids(2, 40)
    cache, tokens, prompts = fresh(model, 2), [ids[:, t] for t in range(40)], [ids[:, :5], ids[:, 5:10]]
    for t, token in enumerate(tokens):
        _, cache = decode_step(model, token, cache)
        if t == 0:
            compilations.clear()
    assert not compilations
    list(generate_stream(model, prompts[0], 2, temperature=0.0, eos_token_id=-1))
    compilations.clear()
    assert len(list(generate_stream(model, prompts[1], 20, temperature=0.0, eos_token_id=-1))) == 20
    assert not compilations


@pytest.mark.parametrize("mode", MODES)
def test_memory_of_a_prefill_is_linear(mode):
    """No array has two axes of the length of the call."""
    model, length = models.build(num_layers=1, **MODES[mode]), 1000
    program = jax.make_jaxpr(lambda ids: model(ids, return_cache=True))(jnp.zeros((1, length), jnp.int32))
    shapes = [[int(n) for n in shape.split(",")] for shape in re.findall(r"\[(\d+(?:,\d+)*)\]", str(program))]
    assert [1, length, 64] in shapes  # logits
    assert not [shape for shape in shapes if sum(n >= length for n in shape) > 1]


@pytest.mark.parametrize("mode", kernel_parity.first(["sliding", "chunk-local", "unbounded"], 1))
def test_initial_caches_are_equivalent(mode):
    """Whatever is allocated, and whether or not the state is wanted afterwards."""
    model, ids = models.build(num_layers=1, **MODES[mode]), models.ids(2, 21)
    truth, _ = step(model, ids, None)
    call = eqx.filter_jit(lambda model, ids, cache: model(ids, cache=cache)[0])
    for cache in (fresh(model, 2), init_cache(model.config, 2)):
        assert_close("logits", step(model, ids, cache)[0], truth)
        assert_close("logits", call(model, ids, cache), truth)


@pytest.mark.thorough
def test_gradients_through_the_cache():
    """Stopped unless asked for; then those of two calls are those of one."""
    model, ids = models.build(num_layers=1), models.ids(1, 21)

    @eqx.filter_jit
    def gradient(pieces, detach_cache):
        def loss(model):
            cache, start, total = None, 0, jnp.float32(0)
            for length in pieces:
                piece = ids[:, start : start + length]
                logits, cache = model(piece, cache=cache, return_cache=True, detach_cache=detach_cache)
                total, start = total + jnp.sum(jnp.sin(logits)), start + length
            return total

        return eqx.filter_grad(loss)(model)

    whole, kept, stopped = (
        named_parameters(gradient(pieces, detach))
        for pieces, detach in (((21,), False), ((5, 16), False), ((5, 16), True))
    )
    for name, value in whole.items():
        assert_close(name, kept[name], value, units=1000)
    assert errors(stopped["model.layers.0.attn.wv.weight"], whole["model.layers.0.attn.wv.weight"])[0] > 1e-3
    state = eqx.filter_grad(lambda m: jnp.sum(m(ids, return_cache=True)[1].final_norm.mean))(model)
    assert all(bool(jnp.all(g == 0)) for g in jax.tree.leaves(state))


@pytest.mark.thorough
@pytest.mark.parametrize("use_checkpoint", [True, False])
def test_training_returns_the_cache_of_layers_only_undetached(use_checkpoint):
    model, ids = models.build(num_layers=1, dropout=0.5, use_checkpoint=use_checkpoint), models.ids(1, 9)
    train = {"return_cache": True, "deterministic": False, "key": jax.random.key(0)}
    _, cache = model(ids, **train)
    assert cache.layer_caches == (None,)
    assert cache.final_norm is not None
    with pytest.raises(ValueError, match="holds no layers"):
        model(ids, cache=cache)
    logits, cache = model(ids, **train, detach_cache=False)
    _, again = model(ids, cache=cache, **train, detach_cache=False)
    assert again.layer_caches[0].attn.count.tolist() == [18]
    assert errors(logits, step(model, ids, None)[0])[0] > 0.1  # dropout


@pytest.mark.parametrize("mode", MODES)
def test_dropout_of_weights_differs_from_block_to_block(mode):
    """Weights are equal and values one: an output is the number of keys that were kept."""
    options = {"max_cache_len": 16} if mode == "sliding" else MODES[mode]
    attention = ChunkedAttention(1, 4, 4, 8, attention_dropout=0.5, **options)
    zeros, ones = jnp.zeros((1, 32, 1, 4)), jnp.ones((1, 32, 1, 4))
    _, cache, _ = attention(zeros, zeros, ones, return_cache=True)
    out, _, _ = attention(zeros, zeros, ones, cache, deterministic=False, key=jax.random.key(0))
    blocks = np.asarray(out[0, :, 0, 0]).reshape(4, 8)
    assert len({tuple(block) for block in blocks}) == 4
    assert 0.6 < blocks.mean() < 1.4


def test_a_model_without_layers_streams():
    model, ids = models.build(num_layers=0), models.ids(2, 9)
    _, cache = model(ids, return_cache=True)
    assert_close("logits", model(ids, cache=cache, return_cache=True)[0], model(jnp.tile(ids, 2))[0][:, 9:])


def test_decoding_on_a_cut_cache_leaves_the_whole_one():
    model, ids = models.build(num_layers=1), models.ids(2, 9)
    _, cache = step(model, ids, None)
    decode_step(model, ids[:, 0], trim_cache(cache, 3))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(cache))


def test_counters_do_not_overflow():
    model, ids = models.build(num_layers=1), models.ids(2, 9)
    _, cache = step(model, ids, None)
    full = jax.tree.map(lambda a: a + (2**31 - 20 - 9) if a.dtype == jnp.int32 else a, cache)
    _, last = step(model, ids[:, :8], full)
    assert last.layer_caches[0].attn.count.tolist() == [2**31 - 12] * 2
    with pytest.raises(ValueError, match="the stream is full"):
        model(models.ids(2, 20), cache=full)
    logits, later = step(model, models.ids(2, 20), full)  # compiled, without checks: no number rather than a wrong one
    assert np.isnan(logits).all()
    assert np.isnan(step(model, ids[:, :1], later)[0]).all()
    one = jax.tree.map(lambda a: a.at[0].set(5) if a.dtype == jnp.int32 else a, full)
    assert np.isfinite(step(model, models.ids(2, 20), one)[0]).all(axis=(1, 2)).tolist() == [True, False]
    with pytest.raises(Exception, match="the stream is full"):
        jax.block_until_ready(
            eqx.filter_jit(lambda m, cache: m(models.ids(2, 20), cache=cache, checks=True))(model, full)
        )


def test_index_and_trim():
    model, ids = models.build(num_layers=1, max_cache_len=11), models.ids(3, 17)
    _, cache = step(model, ids, None)
    picked = index_cache(cache, jnp.asarray([2, 0, 2]))
    follow = jnp.asarray([[7]] * 3, jnp.int32)
    expected = step(model, follow, cache)[0][jnp.asarray([2, 0, 2])]
    assert_close("reordered", step(model, follow, picked)[0], expected)
    with pytest.raises(ValueError, match=r"\[0, 3\)"):
        index_cache(cache, jnp.asarray([3]))
    # A ring cut to six slots keeps the newest six keys: the next token sees those and itself.
    trimmed = trim_cache(cache, 6)
    assert trimmed.layer_caches[0].attn.k.shape[1] == 6
    small = models.with_config(model, max_cache_len=8)
    window = trim_cache(cache, 7)
    assert_close("window", step(small, follow, window)[0], step(small, follow, _last(cache, 7))[0])
    with pytest.raises(ValueError, match="positive"):
        trim_cache(cache, 0)


@pytest.mark.thorough
@pytest.mark.parametrize("mode", MODES)
def test_after_a_trim_the_cut_does_not_matter_either(mode):
    model, ids = models.build(**MODES[mode]), models.ids()
    _, cache = step(model, ids[:, :5], None)
    cache = trim_cache(cache, 3)
    one, end = stream(model, ids[:, 5:], (16,), cache)
    many, last = stream(model, ids[:, 5:], (1,) * 6 + (10,), cache)
    assert_close("logits", many, one)
    assert end.layer_caches[0].attn.k.shape[1] == last.layer_caches[0].attn.k.shape[1] == 3


def _last(cache, slots):
    """The newest `slots` tokens by plain indexing: position t goes from slot t mod 11 to slot t mod `slots`."""
    layer = cache.layer_caches[0]
    count, rings = int(layer.attn.count[0]), {}
    for name in ("k", "v"):
        old = np.asarray(getattr(layer.attn, name))
        new = np.zeros((old.shape[0], slots, *old.shape[2:]), old.dtype)
        for t in range(count - slots, count):
            new[:, t % slots] = old[:, t % old.shape[1]]
        rings[name] = jnp.asarray(new)
    attention = dataclasses.replace(layer.attn, **rings)
    return dataclasses.replace(cache, layer_caches=(dataclasses.replace(layer, attn=attention),))


def test_a_cache_that_does_not_fit_is_refused(unhooked):
    model, ids = models.build(), models.ids()
    _, cache = step(model, ids, None)
    with pytest.raises(ValueError, match="2 layer entries, expected 1"):
        models.build(num_layers=1)(ids, cache=cache)
    with pytest.raises(ValueError, match="shape"):
        model(models.ids(3), cache=cache)
    with pytest.raises(ValueError, match="shape"):
        model(ids, cache=init_cache(models.config(z_dim=32), 2, allocate_kv=True))
    with pytest.raises(ValueError, match="float32, got bfloat16"):
        model(ids, cache=init_cache(model.config, 2, jnp.bfloat16, allocate_kv=True))
    apart = dataclasses.replace(cache, final_norm=dataclasses.replace(cache.final_norm, count=jnp.asarray([21, 20])))
    with pytest.raises(ValueError, match="parts of the cache are at different positions"):
        model(ids, cache=apart)
    with pytest.raises(ValueError, match="segment_ids cannot be used with a cache"):
        model(ids, cache=cache, segment_ids=jnp.ones_like(ids))
