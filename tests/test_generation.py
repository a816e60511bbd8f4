"""Generation: what the model says step by step, whatever the batch, the padding and the number of calls."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax import decode_step, generate, generate_jit, generate_stream, index_cache, init_cache, pad_batch
from tests import kernel_parity, models
from tests.streams import MODES
from tests.tolerance import assert_close


def test_greedy_generation_is_the_argmax_of_the_uncached_model():
    model, prompt = models.build(num_layers=1), models.ids(2, 5)
    ids, cache, key = generate(model, prompt, 7, temperature=0.0, return_cache=True, eos_token_id=-1)
    assert ids.shape == (2, 12)
    assert key is None
    np.testing.assert_array_equal(ids[:, 5:], jnp.argmax(model(ids[:, :-1])[0][:, 4:], axis=-1))
    assert cache.layer_caches[0].attn.count.tolist() == [12, 12]


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["sliding", "chunk-local", "unbounded"])
def test_the_first_token_does_not_depend_on_how_many_follow(mode):
    model, prompt = models.build(**MODES[mode]), models.ids()
    one, _, _ = generate(model, prompt, 1, temperature=0.0)
    two, _, _ = generate(model, prompt, 2, temperature=0.0)
    np.testing.assert_array_equal(np.asarray(one), np.asarray(two[:, :-1]))


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


EOS = 7


def alone(model, prompt, *args, **kwargs):
    """Generation for each row of a list of prompts by itself."""
    return [generate(model, jnp.asarray([row], jnp.int32), *args, **kwargs) for row in prompt]


@pytest.mark.parametrize(
    "where", kernel_parity.first(["chunk-local, left", "sliding, left", "unbounded, right", "sliding, right"], 1)
)
def test_prompts_of_different_lengths(where):
    """Logits of the state too: exact, whatever the phase of a row's chunks."""
    mode, side = where.split(", ")
    model = models.build(num_layers=1, **MODES[mode])
    prompts = [np.asarray(models.ids(1, length, seed=length))[0].tolist() for length in (9, 14)]
    ids, mask = pad_batch(prompts, side=side, pad_token_id=63)
    assert ids.shape == (2, 16)
    tokens, state, _ = generate(model, ids, 9, temperature=0.0, attention_mask=mask, return_state=True)
    for row, (own, single, _) in enumerate(alone(model, prompts, 9, temperature=0.0, return_state=True)):
        np.testing.assert_array_equal(tokens[row, 16:], own[0, len(prompts[row]) :])
        assert_close("logits", state.logits[row], single.logits[0])


@pytest.mark.thorough
def test_another_turn_of_different_lengths():
    model, first = models.build(num_layers=1), models.ids(2, 6)
    _, cache, _ = generate(model, first, 4, temperature=0.0, return_cache=True)
    turns = [[3, 4], [5, 6, 7, 8, 9, 10, 11]]
    ids, mask = pad_batch(turns)
    tokens, _, _ = generate(model, ids, 5, temperature=0.0, attention_mask=mask, cache=cache)
    for row, turn in enumerate(turns):
        own = index_cache(cache, jnp.asarray([row]))
        single, _, _ = generate(model, jnp.asarray([turn], jnp.int32), 5, temperature=0.0, cache=own)
        np.testing.assert_array_equal(tokens[row, 8:], single[0, len(turn) :])


@pytest.mark.thorough
def test_each_row_ends_by_itself():
    """After its end a row is filled up, and its state stays what it was."""
    model, prompt = models.build(num_layers=1), models.ids(3, 5)
    free, _, _ = generate(model, prompt, 12, temperature=0.0, eos_token_id=-1)
    eos = int(free[0, 8])
    ends = [int(np.argmax(np.append(row[5:] == eos, True))) for row in np.asarray(free)]  # 12 for no end
    assert ends[0] <= 3
    assert len(set(ends)) > 1
    tokens, state, _ = generate(model, prompt, 12, temperature=0.0, eos_token_id=eos, return_state=True)
    for row, end in enumerate(ends):
        np.testing.assert_array_equal(tokens[row, 5 : 5 + end + 1], free[row, 5 : 5 + end + 1])
        assert (np.asarray(tokens[row, 5 + end :]) == eos).all()
        assert bool(state.finished[row]) == (end < 12)
        count = min(end + 1, 12)
        _, single, _ = generate(
            model, prompt[row : row + 1], count, temperature=0.0, eos_token_id=-1, return_state=True
        )
        assert_close("logits", state.logits[row], single.logits[0])
        for value, right in zip(*(jax.tree.leaves(s.cache) for s in (state, single)), strict=True):
            assert_close("state", value[row], right[0])
    # Past the end: what a row would have said next.
    past, _, _ = generate(model, prompt[:, :0], 1, temperature=0.0, eos_token_id=-1, state=state)
    np.testing.assert_array_equal(
        past[:, 0], [int(free[row, 5 + end + 1]) if end < 11 else int(past[row, 0]) for row, end in enumerate(ends)]
    )


@pytest.mark.thorough
def test_the_end_of_the_config():
    model, prompt = models.build(num_layers=1), models.ids(1, 5)
    free, _, _ = generate(model, prompt, 6, temperature=0.0, eos_token_id=-1)
    same = models.build(num_layers=1, eos_token_id=int(free[0, 5]))
    ended, _, _ = generate(same, prompt, 6, temperature=0.0)
    assert np.asarray(ended)[0, 5:].tolist() == [int(free[0, 5])] * 6
    never, _, _ = generate(same, prompt, 6, temperature=0.0, eos_token_id=-1)
    np.testing.assert_array_equal(never, free)


@pytest.mark.thorough
def test_the_loop_stops_when_every_row_has_ended():
    """A million tokens are not computed."""
    model, prompt = models.build(num_layers=1), models.ids(2, 5)
    free, _, _ = generate(model, prompt, 1, temperature=0.0, eos_token_id=-1)
    same = jnp.tile(prompt[:1], (2, 1))
    tokens, _, _ = generate(model, same, 1_000_000, temperature=0.0, eos_token_id=int(free[0, 5]))
    assert tokens.shape == (2, 1_000_005)


@pytest.mark.parametrize("sampled", kernel_parity.first([True, False], 1))
def test_generation_goes_on_exactly(sampled):
    model, prompt = models.build(num_layers=1), models.ids(2, 5)
    key, options = (jax.random.key(3), {"temperature": 1.5}) if sampled else (None, {"temperature": 0.0})
    whole, _, _ = generate(model, prompt, 10, key, eos_token_id=-1, **options)
    first, state, key = generate(model, prompt, 4, key, eos_token_id=-1, return_state=True, **options)
    rest, state, _ = generate(model, prompt[:, :0], 6, key, eos_token_id=-1, state=state, return_state=True, **options)
    np.testing.assert_array_equal(whole, np.concatenate([first, rest], axis=1))
    assert state.cache.final_norm.count.tolist() == [15, 15]
    with pytest.raises(ValueError, match="exclude each other"):
        generate(model, prompt, 1, temperature=0.0, return_cache=True, return_state=True)
    for wrong in ({"prompt_ids": prompt}, {"cache": state.cache}, {"prompt_ids": prompt[:1, :0]}):
        with pytest.raises(ValueError, match=r"a state goes on where it stopped|counts of shape"):
            generate(model, **{"prompt_ids": prompt[:, :0], **wrong}, max_new_tokens=1, temperature=0.0, state=state)


@pytest.mark.parametrize("eos", kernel_parity.first([EOS, -1], 1))
def test_a_stream_of_tokens_is_what_generate_gives(eos):
    model, (ids, mask) = models.build(num_layers=1), pad_batch([[5, 9], [3, 3, 3, 8, 1]])
    options = {"temperature": 2.0, "top_k": 12, "eos_token_id": eos, "attention_mask": mask}
    expected, _, _ = generate(model, ids, 15, jax.random.key(1), **options)
    found = list(generate_stream(model, ids, 15, jax.random.key(1), **options))
    np.testing.assert_array_equal(np.stack(found, 1), expected[:, ids.shape[1] : ids.shape[1] + len(found)])
    assert len(found) == 15 or (found[-1] == eos).all()
    if eos == EOS:
        _, state, _ = generate(model, ids, 1, jax.random.key(1), **options, return_state=True)
        state = dataclasses.replace(state, finished=jnp.ones(2, bool))
        assert list(generate_stream(model, ids[:, :0], 5, jax.random.key(1), eos_token_id=eos, state=state)) == []
    with pytest.raises(ValueError, match="max_new_tokens"):
        next(generate_stream(model, ids, 0, temperature=0.0))


@pytest.mark.thorough
def test_one_program_for_each_bucket():
    """Padded and masked is as unpadded, in a plain call too; lengths share what is compiled for their bucket."""
    model, compiled = models.build(num_layers=1), []

    @eqx.filter_jit
    def forward(model, ids, mask):
        compiled.append(ids.shape)
        return model(ids, mask)[0]

    for length in (3, 9, 12, 16, 17, 5):
        row = models.ids(1, length)[0]
        ids, mask = pad_batch([row], buckets=(16, 24), side="right")
        assert_close("logits", forward(model, ids, mask)[:, :length], model(row[None])[0])
    assert compiled == [(1, 16), (1, 24)]


def test_generation_compiles_once_for_each_bucket(compilations):
    """Also where a row fills its bucket."""
    model = models.build(num_layers=1)
    for row in (range(1, 8), range(1, 9), range(3, 6)):
        ids, mask = pad_batch([list(row)], buckets=(8,))
        if len(row) == 8:
            compilations.clear()
        generate(model, ids, 2, temperature=0.0, attention_mask=mask)
    assert not compilations


def test_bad_batches(unhooked):
    with pytest.raises(ValueError, match="no bucket holds 25 tokens"):
        pad_batch([[1] * 25], buckets=(16, 24))
    with pytest.raises(ValueError, match="at least one token"):
        pad_batch([[1], []])
    with pytest.raises(TypeError, match="integers"):
        pad_batch([[1.5]])
    with pytest.raises(ValueError, match="side"):
        pad_batch([[1]], side="both")
    for options in ({"rows": [[2**31]]}, {"rows": [[-1]]}, {"rows": [[1]], "pad_token_id": -1}):
        with pytest.raises(ValueError, match=r"in \[0, 2\^31\)"):
            pad_batch(**options)


@pytest.mark.parametrize("call", [generate, generate_jit])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_ids": [[1, 2]]}, "prompt_ids must be an integer array .*, got list"),
        ({"max_new_tokens": 2.0}, "max_new_tokens must be a Python integer, not 2.0"),
        ({"max_new_tokens": jnp.int32(2)}, "max_new_tokens must be a Python integer, not an array"),
        ({"temperature": jnp.float32(0.5)}, "temperature must be a Python number, not an array"),
        ({"temperature": "hot"}, "temperature must be a Python number, not 'hot'"),
        ({"top_k": 2.5}, "top_k must be a Python integer, not 2.5"),
        ({"top_k": True}, "top_k must be a Python integer, not True"),
        ({"key": 0}, "key must be a PRNG key, .*, got 0"),
    ],
)
def test_what_is_no_option(call, arguments, message, unhooked):
    model = models.build(num_layers=1)
    with pytest.raises(TypeError, match=message):
        call(model, **{"prompt_ids": models.ids(1, 2), "max_new_tokens": 1, "key": jax.random.key(0), **arguments})
    with pytest.raises(ValueError, match=r"\[batch, length\], got \(2,\)"):
        call(model, models.ids(1, 2)[0], 1, temperature=0.0)


def test_what_is_no_state(unhooked):
    model, ids = models.build(num_layers=1), models.ids(1, 2)
    _, state, _ = generate(model, ids, 1, temperature=0.0, return_state=True)
    for arguments, message in (
        ({"cache": state}, "cache must be a ModelCache, got GenerationState"),
        ({"prompt_ids": ids[:, :0], "state": state.cache}, "state must be a GenerationState, got ModelCache"),
        ({"eos_token_id": 3.5}, "eos_token_id must be a Python integer, not 3.5"),
    ):
        with pytest.raises(TypeError, match=message):
            generate(model, **{"prompt_ids": ids, **arguments}, max_new_tokens=1, temperature=0.0)
    small = dataclasses.replace(state, logits=state.logits[:, :32])
    with pytest.raises(ValueError, match="the state is of 32 tokens, the model of 64"):
        generate(model, ids[:, :0], 1, temperature=0.0, state=small)
    with pytest.raises(ValueError, match="would pass 2147483647"):
        generate(model, ids, 2**31 - 2, temperature=0.0)
    for tokens, kind, message in (([1], TypeError, "integer array"), (ids, ValueError, r"\[batch\]")):
        with pytest.raises(kind, match=message):
            decode_step(model, tokens, state.cache)


def test_options_of_numpy_are_options(unhooked):
    options = {
        "temperature": np.float32(0.5), "top_k": np.int64(3), "top_p": np.float64(0.5), "eos_token_id": np.int32(-1)
    }  # fmt: skip
    model = models.build(num_layers=1)
    np.testing.assert_array_equal(
        generate(model, models.ids(1, 2), np.int32(3), jax.random.key(0), **options)[0],
        generate(model, models.ids(1, 2), 3, jax.random.key(0), temperature=0.5, top_k=3, top_p=0.5, eos_token_id=-1)[
            0
        ],
    )


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
        ({"eos_token_id": 64}, "eos_token_id must be in"),
        ({"min_p": 1.5}, "min_p must be in"),
        ({"attention_mask": jnp.zeros((1, 2), bool)}, "at least one True"),
    ],
)
def test_bad_generation_options(arguments, message):
    call = {"prompt_ids": models.ids(1, 2), "max_new_tokens": 1, "key": jax.random.key(0), **arguments}
    with pytest.raises(ValueError, match=message):
        generate(models.build(num_layers=1), **call)
    with pytest.raises(ValueError, match="empty prompt does not go on from a cache"):
        generate(
            models.build(num_layers=1),
            call["prompt_ids"][:, :0],
            1,
            temperature=0.0,
            cache=init_cache(models.config(num_layers=1), 1),
        )
    with pytest.raises(ValueError, match="output_size 50 must equal vocab_size 64"):
        generate(models.build(num_layers=1, output_size=50), models.ids(1, 2), 1, temperature=0.0)
