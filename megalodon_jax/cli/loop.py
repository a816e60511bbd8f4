"""The loop of the demo: a generator of `Progress` records that prints nothing and writes nothing.

    rate(f) = peak * min(f / warmup, 1) * (floor + (1 - floor) (1 + cos(pi f)) / 2)        f = part of the budget used

The budget is a number of steps or of seconds. Seconds count from the first step, after compilation, so the schedule
ends where the budget ends on a fast machine as on a slow one. A run with a number of steps repeats exactly.
"""

import math
import time
from collections.abc import Generator
from dataclasses import dataclass

import equinox as eqx
import numpy as np

from megalodon_jax.cli.data import Corpus
from megalodon_jax.cli.defaults import OPTIMIZER
from megalodon_jax.cli.errors import CommandError
from megalodon_jax.model import MegalodonForCausalLM
from megalodon_jax.training.batches import Batch, fixed_windows, training_batch
from megalodon_jax.training.evaluation import Evaluator, bits
from megalodon_jax.training.optimizer import make_optimizer
from megalodon_jax.training.schedule import cosine
from megalodon_jax.training.step import initial_state, make_step

WARMUP = 0.05
FLOOR = 0.02


@dataclass(frozen=True)
class Options:
    """How to train; the budget is `steps` or, where that is None, `seconds`."""

    batch_size: int
    sequence_length: int
    learning_rate: float
    steps: int | None
    seconds: float = 120.0
    seed: int = 0
    evaluations: int = 10


@dataclass(frozen=True)
class Progress:
    """A run before its first step, and after each step; losses in bits per byte.

    `train` is the loss of the step's batch before its update, None before the first step. `held_out` and `model` are
    None except at evaluations; the arrays of `model` live until the next record is taken.
    """

    step: int
    fraction: float
    seconds: float
    bytes_seen: int
    train: float | None
    held_out: float | None
    model: MegalodonForCausalLM | None
    compile_seconds: float


def learning_rate(peak: float, fraction: float) -> float:
    """Rate after `fraction` of the budget."""
    return min(fraction / WARMUP, 1.0) * cosine(fraction, peak, FLOOR * peak)


def train(model: MegalodonForCausalLM, corpus: Corpus, options: Options) -> Generator[Progress, None, None]:
    """Train with AdamW; evaluate on all held-out bytes before, `options.evaluations` times on the way, and at the end.

    Raises:
        CommandError: the loss is not finite.
    """
    length = options.sequence_length
    optimizer = make_optimizer(OPTIMIZER)
    state, static = initial_state(model, optimizer, options.seed)
    evaluator = Evaluator(static, options.batch_size)
    windows = fixed_windows(corpus.held_out, length, None)

    def batch() -> Batch:
        return training_batch(corpus.train, options.seed, step, (1, options.batch_size), length)

    def record(loss: float | None, evaluate: bool) -> Progress:
        seen = step * options.batch_size * length
        if not evaluate:
            return Progress(step, fraction, seconds, seen, loss, None, None, compile_seconds)
        held_out = bits(evaluator.windows(state.parameters, windows))
        if not math.isfinite(held_out):
            raise CommandError(f"the held-out loss is {held_out} after step {step}; use a smaller learning rate")
        now = eqx.combine(state.parameters, static)
        return Progress(step, fraction, seconds, seen, loss, held_out, now, compile_seconds)

    step, evaluations, fraction, seconds = 0, 0, 0.0, 0.0
    begun = time.perf_counter()
    update = make_step(static, optimizer).lower(state, batch(), np.float32(0)).compile()
    compile_seconds = time.perf_counter() - begun
    yield record(None, True)
    begun = time.perf_counter()
    while fraction < 1.0:
        rate = np.float32(learning_rate(options.learning_rate, fraction))
        state, metrics = update(state, batch(), rate)
        loss = bits(float(metrics.loss))
        if not math.isfinite(loss):
            raise CommandError(f"the loss is {loss} at step {step}; use a smaller learning rate than {rate:g}")
        step += 1
        seconds = time.perf_counter() - begun
        fraction = min(step / options.steps if options.steps else seconds / options.seconds, 1.0)
        due = int(fraction * options.evaluations)
        yield record(loss, due > evaluations)
        evaluations = due
