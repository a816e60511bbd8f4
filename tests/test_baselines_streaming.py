"""Cached calls and generation of the baselines: what one call gives, one program for every token, and where it ends."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax import decode_step, generate, generate_stream, init_cache, pad_batch
from tests import baselines, models
from tests.tolerance import assert_close, errors

LLAMA = pytest.param("llama", marks=pytest.mark.thorough)
GPT = pytest.param("gpt", marks=pytest.mark.thorough)
SLOTS = baselines.SLOTS
IDS = models.ids(2, SLOTS)

call = eqx.filter_jit(lambda model, ids, mask, cache: model(ids, mask, cache, True))


def state(model, held: int):
    """A cache of so many tokens, all keys and values zero: nothing to compile."""
    _, shapes = eqx.filter_eval_shape(model, IDS[:, :1], return_cache=True)
    return jax.tree.map(lambda a: jnp.full(a.shape, held if a.ndim == 1 else 0, a.dtype), shapes)


@pytest.mark.parametrize("kind", ["llama", GPT])
def test_pieces_equal_one_call(kind):
    model, cache, pieces = baselines.build(kind), None, []
    for start, stop in ((0, 9), (9, 13), *((t, t + 1) for t in range(13, SLOTS))):
        logits, cache = call(model, IDS[:, start:stop], None, cache)
        pieces.append(logits)
        assert all(layer.attn.k.shape[:2] == (2, SLOTS) for layer in cache.layer_caches)
    assert_close("logits", jnp.concatenate(pieces, axis=1), baselines.logits(model, IDS))


def test_one_token_is_one_program(compilations):
    model, ids = baselines.build("gpt", n_layer=1), IDS[:1]
    _, cache = call(model, ids[:, :3], None, None)
    logits, cache = decode_step(model, ids[:, 3], cache)
    compilations.clear()
    for t in range(4, SLOTS):
        logits, cache = decode_step(model, ids[:, t], cache)
    assert compilations == []
    assert_close("logits", logits, baselines.logits(model, ids)[:, -1])


@pytest.mark.parametrize("kind", [LLAMA, "gpt"])
def test_padding_is_not_there(kind):
    """Rows of different lengths, padded on either side, and then a masked second turn: each as if alone."""
    model, rows = baselines.build(kind), [[3, 4, 5, 6, 7], [8, 9]]
    ids, mask = pad_batch(rows, side="left")
    more, more_mask = pad_batch([[1, 2], [4, 5, 6, 7]], side="right")
    _, cache = call(model, ids, mask, None)
    logits, cache = call(model, more, more_mask, cache)
    assert cache.layer_caches[0].position.tolist() == [7, 6]
    whole, _ = pad_batch([[3, 4, 5, 6, 7, 1, 2], [8, 9, 4, 5, 6, 7]], side="right")
    alone = baselines.logits(model, whole)  # nothing sees the padding behind
    assert_close("first row", logits[0, :2], alone[0, 5:7])
    assert_close("second row", logits[1], alone[1, 2:6])


@pytest.mark.parametrize("kind", [LLAMA, "gpt"])
def test_greedy_generation_is_the_argmax_of_the_uncached_model(kind):
    model, prompt = baselines.build(kind, **({"depth": 1} if kind == "llama" else {"n_layer": 1})), IDS[:, :5]
    ids, cache, _ = generate(model, prompt, SLOTS - 5, temperature=0.0, return_cache=True)
    assert ids.shape == (2, SLOTS)
    np.testing.assert_array_equal(ids[:, 5:], jnp.argmax(baselines.logits(model, ids)[:, 4:-1], axis=-1))
    assert cache.layer_caches[0].attn.count.tolist() == [SLOTS, SLOTS]


@pytest.mark.thorough
def test_sampling_goes_on_and_streams():
    model, prompt = baselines.build("llama"), IDS[:, :4]
    options = {"temperature": 0.8, "top_k": 20, "top_p": 0.95, "min_p": 0.02}
    ids, _, _ = generate(model, prompt, 6, jax.random.key(3), **options)
    first, state, key = generate(model, prompt, 2, jax.random.key(3), return_state=True, **options)
    rest, _, _ = generate(model, prompt[:, :0], 4, key, state=state, **options)
    np.testing.assert_array_equal(ids, jnp.concatenate([first, rest], axis=1))
    streamed = list(generate_stream(model, prompt, 6, jax.random.key(3), **options))
    np.testing.assert_array_equal(ids[:, 4:], np.stack(streamed, axis=1))


@pytest.mark.thorough
def test_eos_ends_a_row():
    model, prompt = baselines.build("gpt"), IDS[:, :5]
    ids, _, _ = generate(model, prompt, 6, temperature=0.0)
    eos = int(ids[0, 6])
    ended, state, _ = generate(model, prompt, 6, temperature=0.0, eos_token_id=eos, return_state=True)
    assert ended[0, 6:].tolist() == [eos] * 5
    assert state.finished[0]


@pytest.mark.thorough
def test_bfloat16_generation_is_that_of_single_calls():
    """Weights cast once give the same bits."""
    model = baselines.build("gpt", compute_dtype="bfloat16")
    ids, state, _ = generate(model, IDS[:, :5], 6, temperature=0.0, return_state=True)
    logits, cache = call(model, ids[:, :5], None, None)
    for t in range(5, 11):
        logits, cache = call(model, ids[:, t : t + 1], None, cache)
    assert errors(state.logits, logits[:, -1].astype(jnp.float32))[0] < 1e-2


@pytest.mark.usefixtures("unhooked")
def test_the_end_of_a_stream():
    model = baselines.build("gpt", n_layer=1)
    cache = state(model, SLOTS - 1)
    for more, given in ((2, IDS[:, :2]), (3, IDS[:, :3])):
        with pytest.raises(ValueError, match=f"the stream is full: {more} more tokens would pass 24"):
            model(given, cache=cache)
    with pytest.raises(ValueError, match="max_new_tokens 20, 25 with the prompt, would pass 24"):
        generate(model, IDS[:, :5], 20, temperature=0.0)
    with pytest.raises(ValueError, match="the stream is full"):
        generate(model, IDS[:, :1], 1, temperature=0.0, cache=cache)
    with pytest.raises(Exception, match="the stream is full"):
        eqx.filter_jit(model)(IDS[:, :2], cache=cache, checks=True)
    logits, cache = call(model, IDS[:, -1:], None, cache)
    assert jnp.all(jnp.isfinite(logits))
    logits, _ = call(model, IDS[:, -1:], None, cache)
    assert jnp.all(jnp.isnan(logits))


@pytest.mark.usefixtures("unhooked")
def test_a_cache_of_another_model():
    model = baselines.build("llama")
    cache = state(model, 3)
    for other, message in (
        (baselines.build("llama", max_seq_len=30), r"must be float32 \(2, 30, 3, 8\), got float32 \(2, 24, 3, 8\)"),
        (baselines.build("llama", depth=1), "the cache has 2 layers, the model 1"),
        (baselines.build("llama", compute_dtype="bfloat16"), "must be bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            other(IDS[:, 3:4], cache=cache)
    with pytest.raises(ValueError, match=r"must be float32 \(1, 24, 3, 8\)"):
        model(IDS[:1, 3:4], cache=cache)
    megalodon = init_cache(models.config(), 2)
    with pytest.raises(ValueError, match="the cache has a layer without keys"):
        model(IDS[:, 3:4], cache=megalodon)
