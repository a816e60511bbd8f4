"""A run from its config to its last checkpoint."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from megalodon_jax.checkpoint import save_checkpoint
from megalodon_jax.training.checkpoints import NONE_YET, Best, Checkpoints
from megalodon_jax.training.config import TrainingConfig
from megalodon_jax.training.folder import CHECKPOINTS, FINAL, PROFILE, Point, find_point, prepare
from megalodon_jax.training.metrics import Recorder, Show
from megalodon_jax.training.prefetch import Prefetch
from megalodon_jax.training.pretrained import with_sizes
from megalodon_jax.training.probe import with_supported_dtype
from megalodon_jax.training.processes import is_first, largest
from megalodon_jax.training.run import Run
from megalodon_jax.training.samples import draw_sample
from megalodon_jax.training.schedule import learning_rate
from megalodon_jax.training.signals import stop_requests
from megalodon_jax.training.throughput import Meter


class Diverged(ArithmeticError):
    """Losses or gradients were not finite for too long."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: after how many steps, with which best evaluation, and by which signal, if one ended it."""

    step: int
    best: Best
    ended_by: signal.Signals | None


def train(
    config: TrainingConfig, *, resume: str | None = None, overwrite: bool = False, show: Show = lambda record: None
) -> Outcome:
    """`open_run`, then `run_to_its_end`."""
    return run_to_its_end(*open_run(config, resume=resume, overwrite=overwrite), show)


def open_run(config: TrainingConfig, *, resume: str | None = None, overwrite: bool = False) -> tuple[Run, Point | None]:
    """Everything that can be wrong with a run is found here; its folder and its config are written last.

    Args:
        config: the run.
        resume, overwrite: as in `folder.find_point`.

    Raises:
        ValueError: bad data, a model section that is not allowed, a folder as in `find_point`, or a checkpoint that
            cannot be read; nothing is written.
        OSError: the data cannot be read, or the folder not be written.
    """
    if config.compilation_cache is not None:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    if config.init_from == "gpt2":
        config = with_sizes(config)
    config = with_supported_dtype(config)
    if resume is None and config.init_from == "resume":
        resume = config.run_dir
    point = find_point(config, resume, overwrite)
    run = Run(config)
    if point is not None:
        with Checkpoints(point.checkpoints, None) as source:
            run.state = source.restore(point.step, run.state)
    prepare(config, point)
    return run, point


def run_to_its_end(run: Run, point: Point | None, show: Show = lambda record: None) -> Outcome:
    """Train, evaluate and save as the config says, until the last step, a signal, or the end of the patience.

    Every batch is a function of seed and step, so a run that goes on from a checkpoint ends in the same weights, bit
    for bit, as one that was never interrupted, and has the same losses in its metrics.

    Args:
        run, point: of `open_run`; the run's state is used up.
        show: gets every record of metrics, in the first process.

    Raises:
        OSError: the folder cannot be written.
        Diverged: `optimizer.most_bad_steps` steps in a row were not finite.
    """
    with ExitStack() as resources:
        loop = _Loop(run, point, show, resources)
        loop.run()
        return Outcome(loop.step, loop.best, loop.ended_by)


class _Loop:
    def __init__(self, run: Run, point: Point | None, show: Show, resources: ExitStack):
        config, self._run = run.config, run
        self._config, self._folder = config, Path(config.run_dir)
        self._checkpoints = resources.enter_context(Checkpoints(self._folder / CHECKPOINTS, config.checkpoint.keep))
        self.step, self.best, self._saved = 0, NONE_YET, -1
        if point is not None:
            self._checkpoints.forget_after(point.step)
            self.step, self.best = point.step, point.best
            self._saved = point.step if point.step in self._checkpoints.steps() else -1
        self._state, self._under_way = run.state, None
        self._write = _silent
        if is_first():
            recorder = Recorder(self._folder, self.step, config.log.tensorboard, show)
            self._write = resources.enter_context(recorder).write
        self._batches = resources.enter_context(Prefetch(run.batch, self.step))
        traced = config.log.profile if is_first() else None
        self._profile = resources.enter_context(profiler(traced, self._folder / PROFILE))
        self._request = resources.enter_context(stop_requests())
        self.ended_by: signal.Signals | None = None
        self._meter, self._alone = Meter(config), jax.process_count() == 1

    def run(self) -> None:
        config = self._config
        if self.step == 0 and config.evaluation.every:
            self._evaluate()
        while not self._is_over():
            self._advance()
            if self._due(config.log.every):
                self._log()
            self._between_steps()
        if self._saved != self.step:
            self._save()
        if self.ended_by is None:
            self._request.let_go()  # everything is saved: what follows may be interrupted
            self._finish()

    def _between_steps(self) -> None:
        """What is due after this step; where nothing is, the host does not wait for it."""
        config, last = self._config, self.step == self._config.steps
        evaluates, samples = self._due(config.evaluation.every) or last, self._due(config.samples.every)
        saves = self._due(config.checkpoint.every) or last
        if not (evaluates or samples or saves):
            return
        with self._meter.paused():
            if evaluates:
                self._evaluate()
            if samples:
                self._sample()
            if saves or self.best.step == self.step:
                self._save()

    def _is_over(self) -> bool:
        patience = self._config.evaluation.patience
        gave_up, last = patience > 0 and self.best.since >= patience, self.step >= self._config.steps
        if self._alone or last or self._due(self._config.log.every):  # several processes have to wait for each other
            came = largest(self._request.came or 0)
            self.ended_by = signal.Signals(came) if came else None
        return last or gave_up or self.ended_by is not None

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _advance(self) -> None:
        """One step, of which only the one before is waited for: the host gets the next ready meanwhile."""
        self._profile(self.step, self._under_way)
        rate = np.float32(learning_rate(self._config.optimizer, self._config.steps, self.step))
        self._state, metrics = self._run.step(self._state, self._batches.next(), rate)
        jax.block_until_ready(self._under_way)
        self._under_way = metrics
        self.step += 1
        self._meter.add(metrics)

    def _log(self) -> None:
        record = self._meter.record(self.step)
        if record is None:
            return
        self._write(self.step, record)
        if record["bad_in_a_row"] >= self._config.optimizer.most_bad_steps:
            raise Diverged(
                f"the last {record['bad_in_a_row']} losses or gradients up to step {self.step} were not finite; "
                f"use a smaller optimizer.learning_rate than {self._config.optimizer.learning_rate:g}, in a new run"
            )

    def _evaluate(self) -> None:
        losses = self._run.evaluate(self._state)
        self._write(self.step, losses)
        if self.step:
            self.best = self.best.after(losses["validation_loss"], self.step)

    def _sample(self) -> None:
        model = self._run.model(self._state)
        if is_first():
            self._write(self.step, draw_sample(model, self._run.parts.validation, self._config, self.step))

    def _save(self) -> None:
        self._log()  # so that a run that goes on from here has the same records
        self._checkpoints.save(self._state, self._config.to_dict(), self.best)
        self._saved = self.step

    def _finish(self) -> None:
        if self._config.evaluation.sequential != "none":
            self._write(self.step, self._run.evaluate_sequentially(self._state))
        model = self._run.model(self._state)
        if is_first():
            save_checkpoint(model, self._folder / FINAL)


def _silent(step: int, values: Mapping[str, Any]) -> None:
    """What processes other than the first write."""


@contextmanager
def profiler(steps: tuple[int, int] | None, folder: Path) -> Iterator[Callable[[int, Any], None]]:
    """To be called before every step, with what the step before gives: traces those from steps[0] up to steps[1]."""
    running = False

    def at(step: int, under_way: Any) -> None:
        nonlocal running
        if steps is None or running == (steps[0] <= step < steps[1]):
            return
        jax.block_until_ready(under_way)
        if running:
            jax.profiler.stop_trace()
        else:
            jax.profiler.start_trace(str(folder))
        running = not running

    yield at
    if running:
        jax.profiler.stop_trace()
