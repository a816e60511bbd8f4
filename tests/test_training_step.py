"""One update: gradients of micro-batches and documents, decay, clipping, learning rates, steps that are not finite."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from megalodon_jax.architectures import abstract_model
from megalodon_jax.training.batches import Batch
from megalodon_jax.training.config import Optimizer
from megalodon_jax.training.optimizer import is_decayed, make_optimizer
from megalodon_jax.training.packing import IGNORED, segments
from megalodon_jax.training.schedule import learning_rate
from megalodon_jax.training.step import accumulate, initial_state, loss_and_gradients, make_step
from tests import models
from tests.bigram import Bigram, bigram

KEY = jax.random.key(0)
RATE = np.float32(0.01)


def batch(rows: int = 4, seed: int = 0) -> Batch:
    """Rows that ignore different numbers of targets."""
    windows = np.random.default_rng(seed).integers(0, 16, (rows, 9)).astype(np.int32)
    targets = windows[:, 1:].copy()
    for row in range(rows):
        targets[row, : 2 * row] = IGNORED
    return Batch(windows[:, :-1], targets, None)


def cut(batch: Batch, parts: int) -> Batch:
    """[B, T] as [parts, B / parts, T]."""
    return jax.tree.map(lambda a: jnp.asarray(a.reshape(parts, -1, a.shape[-1])), batch)


def documents(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    r = np.random.default_rng(seed)
    return [np.append(r.integers(1, 50, length - 1), 0).astype(np.int32) for length in lengths]


def test_micro_batches_give_what_the_whole_batch_gives():
    """Each counts by its targets, not by its number: the mean of the means would be another one."""
    model = eqx.filter(bigram(), eqx.is_array)

    def gradients(parameters, rows, _key):  # without its noise
        return loss_and_gradients(bigram())(parameters, rows, None)

    whole, halves, single = (accumulate(gradients, model, cut(batch(), parts), KEY) for parts in (1, 2, 4))
    for found in (halves, single):
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    counts = np.sum(batch().targets != IGNORED, axis=1)
    assert counts.tolist() == [8, 6, 4, 2]
    rows = [jax.tree.map(lambda a, i=i: a[i : i + 1], batch()) for i in range(4)]
    means = [accumulate(gradients, model, cut(row, 1), KEY)[0] for row in rows]
    assert abs(float(whole[0]) - np.mean(means)) > 1e-3
    np.testing.assert_allclose(whole[0], np.average(means, weights=counts), rtol=1e-5)


def test_a_batch_that_predicts_nothing_is_zero():
    nothing = batch()._replace(targets=np.full((4, 8), IGNORED, np.int32))
    loss, gradients = accumulate(loss_and_gradients(bigram()), bigram(), cut(nothing, 2), KEY)
    assert float(loss) == 0
    assert not np.any(jax.tree.leaves(gradients)[0])


def packed_gradients(lengths: list[int]):
    """Of the same documents: packed into one row, and one by one."""
    model = models.build(num_layers=1)
    parameters, static = eqx.partition(model, eqx.is_array)
    gradients = jax.jit(loss_and_gradients(static))
    texts = documents(lengths)
    window = np.append(np.concatenate(texts), 3)[None].astype(np.int32)  # what follows starts another document
    segment_ids, targets = segments(window, separator=0)
    packed = gradients(parameters, Batch(window[:, :-1], targets, segment_ids), KEY)
    alone = [gradients(parameters, Batch(text[None, :-1], text[None, 1:], None), KEY) for text in texts]
    return packed, jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *alone)


@pytest.mark.parametrize("lengths", [[11, 11], pytest.param([5, 11, 2, 9], marks=pytest.mark.thorough)])
def test_packed_documents_train_as_if_alone(lengths):
    packed, alone = packed_gradients(lengths)
    assert int(packed[1]) == int(alone[1]) == sum(lengths) - len(lengths)
    for one, other in zip(jax.tree.leaves(packed), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def test_dropout_of_every_step_and_micro_batch_is_another_one():
    optimizer = make_optimizer(Optimizer(name="adam_l2", weight_decay=0.0, gradient_clip=0.0))
    state, static = initial_state(bigram(), optimizer, seed=0)
    step = make_step(static, optimizer)
    losses = []
    for _ in range(2):
        state, metrics = step(state, cut(batch(), 1), np.float32(0))
        losses.append(float(metrics.loss))
    assert losses[0] != losses[1]
    again, _ = initial_state(bigram(), optimizer, seed=0)
    assert float(step(again, cut(batch(), 1), np.float32(0))[1].loss) == losses[0]
    rows = cut(jax.tree.map(lambda a: np.concatenate([a[:1], a[:1]]), batch()), 2)
    once, _ = accumulate(loss_and_gradients(static), bigram(), rows, KEY)
    first, _ = accumulate(loss_and_gradients(static), bigram(), jax.tree.map(lambda a: a[:1], rows), KEY)
    assert float(once) != float(first)


def test_a_step_that_is_not_finite_changes_only_counters():
    optimizer = make_optimizer(Optimizer())
    state, static = initial_state(bigram(), optimizer, seed=0)
    step = make_step(static, optimizer)
    poison = bigram().weight.at[:, 3].set(jnp.nan)
    state, _ = step(state, cut(batch(), 2), RATE)
    before = jax.tree.map(np.array, (state.parameters, state.optimizer))
    bad = state._replace(parameters=Bigram(jnp.array(poison, copy=True)))
    bad, metrics = step(bad, cut(batch(), 2), RATE)
    bad, metrics = step(bad, cut(batch(), 2), RATE)
    assert not math.isfinite(metrics.loss)
    assert (int(metrics.skipped), int(metrics.bad), int(bad.step)) == (2, 2, 3)
    for one, other in zip(jax.tree.leaves(bad.optimizer), jax.tree.leaves(before[1]), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(bad.parameters.weight, poison)
    good, metrics = step(bad._replace(parameters=jax.tree.map(jnp.asarray, before[0])), cut(batch(), 2), RATE)
    assert math.isfinite(metrics.loss)
    assert (int(metrics.skipped), int(metrics.bad), int(good.step)) == (2, 0, 4)
    assert not np.array_equal(good.parameters.weight, before[0].weight)


def test_a_change_that_is_not_finite_is_not_made():
    """Though loss and gradients are finite."""
    optimizer = optax.GradientTransformation(
        lambda parameters: (), lambda g, state, _: (jax.tree.map(lambda a: a / 0.0, g), state)
    )
    state, static = initial_state(bigram(), optimizer, seed=0)
    state, metrics = make_step(static, optimizer)(state, cut(batch(), 2), RATE)
    assert math.isfinite(metrics.loss)
    assert int(metrics.bad) == 1
    np.testing.assert_array_equal(state.parameters.weight, bigram().weight)


def by_hand(config: Optimizer, weight, gradients, rate):
    """Adam step by step in float64."""
    m = v = np.zeros_like(weight)
    for count, gradient in enumerate(gradients, 1):
        norm = np.linalg.norm(gradient)
        gradient = gradient * min(1.0, config.gradient_clip / norm) if config.gradient_clip else gradient
        gradient = gradient + (config.weight_decay * weight if config.name == "adam_l2" else 0)
        m = config.beta1 * m + (1 - config.beta1) * gradient
        v = config.beta2 * v + (1 - config.beta2) * gradient**2
        change = m / (1 - config.beta1**count) / (np.sqrt(v / (1 - config.beta2**count)) + config.epsilon)
        weight = weight - rate * (change + (config.weight_decay * weight if config.name == "adamw" else 0))
    return weight


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("name", ["adamw", "adam_l2"])
def test_the_optimizers_by_hand(name, clip):
    config = Optimizer(name=name, weight_decay=0.3, beta1=0.8, beta2=0.9, epsilon=1e-6, gradient_clip=clip)
    r = np.random.default_rng(1)
    model = bigram()
    gradients = [r.normal(size=model.weight.shape) for _ in range(4)]
    optimizer = make_optimizer(config)
    state, parameters = optimizer.init(model), model
    with jax.numpy_dtype_promotion("standard"):
        for gradient in gradients:
            changes, state = optimizer.update(Bigram(jnp.asarray(gradient, jnp.float32)), state, parameters)
            parameters = jax.tree.map(lambda a, u: a - 0.01 * u, parameters, changes)
    truth = by_hand(config, np.asarray(model.weight, np.float64), gradients, 0.01)
    np.testing.assert_allclose(parameters.weight, truth, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("variant", ["hf", "original"])
def test_what_decays(variant):
    """The matrices of linear layers, embedding and head: no bias, nothing of a norm or of the EMA, no affine map."""
    config = models.config(variant=variant, swiglu=True, rescale_nffn=True, num_layers=1)
    decayed = [name for name, leaf in abstract_model(config)[1].items() if is_decayed(name, leaf)]
    linear = [f"attn.{name}" for name in ("wz", "wv", "wr", "wh1", "wh2")] + [
        f"ffn.{name}" for name in ("fc1", "fc2", "fc3")
    ]
    expected = ["model.embed.weight", *(f"model.layers.0.{name}.weight" for name in linear)]
    assert decayed == expected + (["lm_head.weight"] if variant == "original" else [])


def test_learning_rates():
    constant = Optimizer(learning_rate=2.0, schedule="constant", warmup_steps=4)
    assert [learning_rate(constant, 100, step) for step in (0, 1, 3, 4, 99)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    cosine = Optimizer(learning_rate=2.0, min_learning_rate=0.5, warmup_steps=2)
    assert [learning_rate(cosine, 10, step) for step in (0, 1, 2)] == [1.0, 2.0, 2.0]
    assert learning_rate(cosine, 10, 6) == pytest.approx(1.25)  # half way down
    assert learning_rate(cosine, 10, 10) == learning_rate(cosine, 10, 50) == 0.5
    longer = Optimizer(learning_rate=2.0, min_learning_rate=0.5, warmup_steps=2, decay_steps=18)
    assert learning_rate(longer, 10, 10) == pytest.approx(1.25)
