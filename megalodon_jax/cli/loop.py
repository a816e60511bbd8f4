"""The training loop: a generator of `Progress` records that prints nothing and writes nothing.

    rate(f) = peak * min(f / warmup, 1) * (floor + (1 - floor) (1 + cos(pi f)) / 2)        f = part of the budget used

The budget is a number of steps or of seconds. Seconds count from the first step, after compilation, so the schedule
ends where the budget ends on a fast machine as on a slow one. A run with a number of steps repeats exactly.
"""

import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Int32

from megalodon_jax.cli.data import Corpus, evaluation_windows, training_batches
from megalodon_jax.cli.errors import CommandError
from megalodon_jax.cli.step import compile_step
from megalodon_jax.model import MegalodonForCausalLM

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
    weight_decay: float = 0.1
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
    decay = FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * fraction)) / 2
    return peak * min(fraction / WARMUP, 1.0) * decay


def train(model: MegalodonForCausalLM, corpus: Corpus, options: Options) -> Generator[Progress, None, None]:
    """Train with AdamW; evaluate on all held-out bytes before, `options.evaluations` times on the way, and at the end.

    Raises:
        CommandError: the loss is not finite.
    """
    batches = training_batches(corpus.train, options.batch_size, options.sequence_length, options.seed)
    windows = evaluation_windows(corpus.held_out, options.sequence_length)
    batch = next(batches)
    compiled = compile_step(model, batch, options.weight_decay)
    parameters, state, key = compiled.parameters, compiled.state, jax.random.key(options.seed)

    def record(loss: float | None, evaluate: bool) -> Progress:
        seen = step * options.batch_size * options.sequence_length
        if not evaluate:
            return Progress(step, fraction, seconds, seen, loss, None, None, compiled.seconds)
        held_out = _bits_per_byte(lambda ids: compiled.losses(parameters, ids), windows, options.batch_size)
        if not math.isfinite(held_out):
            raise CommandError(f"the held-out loss is {held_out} after step {step}; use a smaller learning rate")
        return Progress(step, fraction, seconds, seen, loss, held_out, compiled.model(parameters), compiled.seconds)

    step, evaluations, fraction, seconds = 0, 0, 0.0, 0.0
    yield record(None, True)
    begun = time.perf_counter()
    while fraction < 1.0:
        rate = np.float32(learning_rate(options.learning_rate, fraction))
        parameters, state, loss = compiled.step(parameters, state, batch, rate, jax.random.fold_in(key, step))
        bits = float(loss) / math.log(2)
        if not math.isfinite(bits):
            raise CommandError(f"the loss is {bits} at step {step}; use a smaller learning rate than {rate:g}")
        batch, step = next(batches), step + 1
        seconds = time.perf_counter() - begun
        fraction = min(step / options.steps if options.steps else seconds / options.seconds, 1.0)
        due = int(fraction * options.evaluations)
        yield record(bits, due > evaluations)
        evaluations = due


def _bits_per_byte(losses: Callable[[np.ndarray], jax.Array], windows: Int32[np.ndarray, "W L"], rows: int) -> float:
    total = 0.0
    for start in range(0, len(windows), rows):
        batch = windows[start : start + rows]
        padded = np.pad(batch, ((0, rows - len(batch)), (0, 0)))
        total += float(np.asarray(losses(padded))[: len(batch)].sum(dtype=np.float64))
    return total / (windows.shape[0] * (windows.shape[1] - 1)) / math.log(2)
