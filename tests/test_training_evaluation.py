"""Losses of windows and of whole texts, against one call on everything; text from a model in training."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax.training.batches import fixed_windows, sliding_windows
from megalodon_jax.training.config import TrainingConfig
from megalodon_jax.training.evaluation import Evaluator
from megalodon_jax.training.samples import draw_sample
from tests import models
from tests.bigram import bigram

TOKENS = np.random.default_rng(0).integers(1, 50, 47).astype(np.uint16)


def parts(model):
    return eqx.partition(model, eqx.is_array)


def test_the_mean_over_windows_counts_every_target_once():
    """Three rows at a time of four windows; the last window is half empty."""
    parameters, static = parts(bigram(64))
    loss = Evaluator(static, 3).windows(parameters, fixed_windows(TOKENS, 13, None))
    logits = np.asarray(jax.nn.log_softmax(bigram(64).weight[TOKENS[:-1].astype(np.int32)]), np.float64)
    assert loss == pytest.approx(-np.mean(logits[np.arange(46), TOKENS[1:]]), rel=1e-6)


def test_a_streaming_evaluation_is_one_call_on_the_whole_text():
    """Pieces of 12 tokens, chunks of 8, so pieces begin in the middle of chunks, and the last one is not full."""
    model = models.build(num_layers=1)
    parameters, static = parts(model)
    loss, how = Evaluator(static, 1).sequential(parameters, TOKENS, 12)
    assert how == "streaming"
    whole = jnp.asarray(TOKENS[None], jnp.int32)
    assert loss == pytest.approx(float(jax.jit(lambda m: m.compute_loss(whole, whole))(model)), rel=1e-5)


def test_a_model_without_streams_reads_sliding_windows():
    class Sized(eqx.Module):
        model: eqx.Module
        config: object = eqx.field(static=True)

        def compute_loss(self, *arguments, **options):
            return self.model.compute_loss(*arguments, **options)

    parameters, static = parts(Sized(bigram(64), models.config()))
    loss, how = Evaluator(static, 4).sequential(parameters, TOKENS, 12)
    assert how == "sliding windows"
    assert loss == Evaluator(static, 4).windows(parameters, sliding_windows(TOKENS, 12))
    with pytest.raises(ValueError, match="at least 2 are needed"):
        Evaluator(static, 1).sequential(parameters, TOKENS[:1], 12)


@pytest.mark.thorough
def test_samples_repeat_and_are_of_the_validation_part():
    settings = {"samples": {"every": 1, "prompt_length": 6, "length": 4}, "seed": 3}
    model, text = models.build(num_layers=1, pad_token_id=None), np.arange(40, 60, dtype=np.uint8)
    config = TrainingConfig.from_dict(settings)
    first, again, later = (draw_sample(model, text, config, step) for step in (1, 1, 2))
    assert first == again != later
    assert first["prompt"].encode() in text.tobytes()
    assert len(first["sample"]) == 4
    ids = draw_sample(model, text, TrainingConfig.from_dict(settings | {"data": {"tokens": "uint16"}}), 1)
    assert bytes(ids["prompt"]) == first["prompt"].encode()
    assert bytes(ids["sample"]) == first["sample"].encode()
