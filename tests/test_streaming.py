"""Caches and generation: however a stream is cut into calls the result is that of one call."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax import (
    MegalodonForCausalLM,
    generate,
    generate_jit,
    greedy_token,
    index_cache,
    init_cache,
    sample_token,
    trim_cache,
)
from megalodon_jax.parameters import map_parameters, named_parameters
from tests import models
from tests.tolerance import MODEL_RELATIVE, assert_close, errors

MODES = {"chunk-local": {}, "sliding": {"max_cache_len": 11}, "unbounded": {"cache_unbounded": True}}
step = eqx.filter_jit(lambda model, ids, cache: model(ids, cache=cache, return_cache=True))


def stream(model, ids, pieces, cache=None):
    outputs, start = [], 0
    for length in pieces:
        logits, cache = step(model, ids[:, start : start + length], cache)
        outputs.append(logits)
        start += length
    assert start == ids.shape[1]
    return jnp.concatenate(outputs, axis=1), cache


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pieces", [(21,), (5, 16), (1,) * 5 + (16,), (16,) + (1,) * 5])
def test_any_cut_matches_torch_in_one_call(mode, pieces, torch_oracle):
    import torch

    model, ids = models.build(**MODES[mode]), models.ids()
    twin = models.to_torch(model, torch_oracle, torch.float64)
    with torch.no_grad():
        truth, _ = twin(torch.tensor(np.asarray(ids), dtype=torch.long), use_cache=True)
    logits, cache = stream(model, ids, pieces)
    assert errors(logits, truth.numpy())[0] < MODEL_RELATIVE
    assert int(cache.layer_caches[0].attn.count) == int(cache.layer_caches[1].position) == 21


def test_chunk_local_streaming_is_the_training_forward():
    model, ids = models.build(), models.ids()
    assert_close("logits", stream(model, ids, (5, 16))[0], model(ids)[0])


def test_decoding_does_not_recompile():
    model, ids = models.build(num_layers=1), models.ids()
    compiled = []

    @eqx.filter_jit
    def one(model, ids, cache):
        compiled.append(ids.shape)
        return model(ids, cache=cache, return_cache=True)

    cache = init_cache(model.config, 2, allocate_kv=True, allocate_norm=True, allocate_ema=True)
    _, cache = one(model, ids[:, :1], cache)
    for t in range(1, 20):
        _, cache = one(model, ids[:, t : t + 1], cache)
    assert len(compiled) == 1


def test_initial_caches_are_equivalent():
    model, ids = models.build(num_layers=1), models.ids(2, 10)
    truth, _ = step(model, ids, None)
    for allocate in (False, True):
        cache = init_cache(model.config, 2, allocate_kv=allocate, allocate_norm=allocate, allocate_ema=allocate)
        assert_close("logits", step(model, ids, cache)[0], truth)


def test_cache_leaves_carry_no_gradient_and_training_returns_no_layer_caches():
    model, ids = models.build(num_layers=1), models.ids(1, 9)
    loss = lambda m: jnp.sum(m(ids, return_cache=True)[1].final_norm.mean)  # noqa: E731
    assert all(bool(jnp.all(g == 0)) for g in jax.tree.leaves(eqx.filter_grad(loss)(model)))
    _, cache = model(ids, return_cache=True, deterministic=False)
    assert cache.layer_caches == (None,)
    assert cache.final_norm is not None


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
    small = _with_config(model, max_cache_len=8)
    window = trim_cache(cache, 7)
    assert_close("window", step(small, follow, window)[0], step(small, follow, _last(cache, 7))[0])
    with pytest.raises(ValueError, match="positive"):
        trim_cache(cache, 0)


@pytest.mark.parametrize("mode", MODES)
def test_after_a_trim_the_cut_does_not_matter_either(mode):
    model, ids = models.build(**MODES[mode]), models.ids()
    _, cache = step(model, ids[:, :5], None)
    cache = trim_cache(cache, 3)
    one, end = stream(model, ids[:, 5:], (16,), cache)
    many, last = stream(model, ids[:, 5:], (1,) * 6 + (10,), cache)
    assert_close("logits", many, one)
    assert end.layer_caches[0].attn.k.shape[1] == last.layer_caches[0].attn.k.shape[1] == 3


@pytest.mark.parametrize("mode", MODES)
def test_the_first_token_does_not_depend_on_how_many_follow(mode):
    model, prompt = models.build(**MODES[mode]), models.ids()
    one, _, _ = generate(model, prompt, 1, temperature=0.0)
    two, _, _ = generate(model, prompt, 2, temperature=0.0)
    np.testing.assert_array_equal(np.asarray(one), np.asarray(two[:, :-1]))


def _with_config(model, **changes):
    config = dataclasses.replace(model.config, **changes)
    weights = named_parameters(model)
    return map_parameters(lambda name, _: weights[name], MegalodonForCausalLM(config, key=jax.random.key(0)))


def _last(cache, slots):
    """The newest `slots` tokens by plain indexing: position t goes from slot t mod 11 to slot t mod `slots`."""
    layer = cache.layer_caches[0]
    count, rings = int(layer.attn.count), {}
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
    with pytest.raises(ValueError, match="Cannot use cache with padding"):
        model(ids, jnp.ones(ids.shape, bool).at[0, 0].set(False), cache=cache)
    with pytest.raises(ValueError, match="segment_ids cannot be used with a cache"):
        model(ids, cache=cache, segment_ids=jnp.ones_like(ids))


def test_greedy_generation_is_the_argmax_of_the_uncached_model():
    model, prompt = models.build(num_layers=1), models.ids(2, 5)
    ids, cache, key = generate(model, prompt, 7, temperature=0.0, return_cache=True)
    assert ids.shape == (2, 12)
    assert key is None
    for t in range(5, 12):
        expected = greedy_token(model(ids[:, :t])[0][:, -1]) if t in (5, 9, 11) else ids[:, t]
        np.testing.assert_array_equal(np.asarray(ids[:, t]), np.asarray(expected))
    assert int(cache.layer_caches[0].attn.count) == 12


def test_sampling_options():
    model, prompt = models.build(num_layers=1), models.ids(2, 5)
    options = {"temperature": 0.8, "top_k": 5, "top_p": 0.9}
    a, _, key = generate(model, prompt, 6, jax.random.key(0), **options)
    b, _, _ = generate_jit(model, prompt, 6, jax.random.key(0), **options)
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert not jnp.array_equal(jax.random.key_data(key), jax.random.key_data(jax.random.key(0)))
    eos = int(a[0, 5])
    filled, _, _ = generate(model, prompt, 6, jax.random.key(0), eos_token_id=eos, **options)
    assert np.asarray(filled)[0, 5:].tolist() == [eos] * 6
    empty, _, _ = generate(model, prompt[:, :0], 2, temperature=0.0)
    assert np.asarray(empty)[:, 0].tolist() == [1, 1]


def test_padded_prompts_for_one_token():
    model, prompt = models.build(num_layers=1), models.ids(1, 6)
    mask = jnp.asarray([[True] * 4 + [False] * 2])
    ids, _, _ = generate(model, prompt, 1, temperature=0.0, attention_mask=mask)
    alone, _, _ = generate(model, prompt[:, :4], 1, temperature=0.0)
    assert int(ids[0, -1]) == int(alone[0, -1])
    with pytest.raises(ValueError, match="padded attention_mask"):
        generate(model, prompt, 2, temperature=0.0, attention_mask=mask)
    with pytest.raises(ValueError, match="at least one True"):
        generate(model, prompt, 1, temperature=0.0, attention_mask=jnp.zeros((1, 6), bool))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": -1}, "non-negative"),
        ({"max_new_tokens": 0}, "> 0"),
        ({"key": None}, "key is required"),
        ({"temperature": -1.0}, "temperature must be >= 0"),
        ({"top_k": -1}, "top_k must be >= 0"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"prompt_ids": jnp.asarray([[64]], jnp.int32)}, "out-of-bounds"),
        ({"temperature": math.nan}, "temperature must be >= 0"),
        ({"prompt_ids": jnp.zeros((1, 0), jnp.int32), "bos_token_id": 64}, "bos_token_id must be in"),
    ],
)
def test_bad_generation_options(arguments, message):
    call = {"prompt_ids": models.ids(1, 2), "max_new_tokens": 1, "key": jax.random.key(0), **arguments}
    with pytest.raises(ValueError, match=message):
        generate(models.build(num_layers=1), **call)
    with pytest.raises(ValueError, match="output_size 50 must equal vocab_size 64"):
        generate(models.build(num_layers=1, output_size=50), models.ids(1, 2), 1, temperature=0.0)


def test_top_k_keeps_exactly_k_of_equals():
    logits = jnp.zeros((2000, 8))
    drawn = np.asarray(sample_token(logits, jax.random.key(0), top_k=3))
    assert set(drawn.tolist()) == {0, 1, 2}
    assert set(np.asarray(sample_token(logits, jax.random.key(0), top_k=1)).tolist()) == {0}


def test_top_p_keeps_the_token_that_crosses():
    logits = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]])).repeat(2000, 0)
    draw = lambda **kw: set(np.asarray(sample_token(logits, jax.random.key(1), **kw)).tolist())  # noqa: E731
    assert draw(top_p=0.6) == {0, 1}
    assert draw(top_p=0.01) == {0}
    assert draw(top_p=1.0) == {0, 1, 2, 3}
    # With top_k the mass is that of the k best: 0.5 / 0.8 = 0.625 > 0.6.
    assert draw(top_p=0.6, top_k=2) == {0}
    assert draw(temperature=0.0) == {0}
