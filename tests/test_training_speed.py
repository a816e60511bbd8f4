"""What a run does between steps: waiting, the clock, the profiler."""

import time
from pathlib import Path

import jax
import numpy as np
import pytest

from megalodon_jax.training import loop, models, throughput
from megalodon_jax.training import run as runs
from megalodon_jax.training.config import TrainingConfig
from megalodon_jax.training.loop import train
from megalodon_jax.training.metrics import read_metrics
from megalodon_jax.training.step import Metrics
from tests.training_runs import bigram_run, changed

SECONDS = 0.1  # of a slow step


@pytest.fixture
def config(tmp_path, monkeypatch) -> TrainingConfig:
    return bigram_run(tmp_path, monkeypatch)


@pytest.fixture
def done(monkeypatch) -> list[int]:
    """Steps become slow, and note here that they are done."""
    found: list[int] = []

    def note(step, loss):
        time.sleep(SECONDS)
        found.append(int(step))
        return loss

    def make_step(*arguments):
        step = runs_step(*arguments)

        @jax.jit
        def slow(state, batch, rate):
            state, metrics = step(state, batch, rate)
            return state, metrics._replace(loss=jax.pure_callback(note, metrics.loss, state.step, metrics.loss))

        return slow

    runs_step = runs.make_step
    monkeypatch.setattr(runs, "make_step", make_step)
    return found


@pytest.mark.thorough
def test_one_step_at_most_is_under_way(config, done, monkeypatch):
    """So that a signal ends a run after the step, however seldom it logs."""
    advance, behind = loop._Loop._advance, []

    def watched(self):
        advance(self)
        behind.append(self.step - len(done))

    monkeypatch.setattr(loop._Loop, "_advance", watched)
    train(changed(config, log__every=50, evaluation__every=0, checkpoint__every=0))
    assert len(behind) == 12
    assert max(behind) <= 1


@pytest.mark.thorough
def test_the_first_record_does_not_pay_for_the_first_step(config, done):
    train(changed(config, evaluation__every=0, checkpoint__every=0))
    seconds = [r["step_seconds"] for r in read_metrics(Path(config.run_dir) / "metrics.jsonl") if "step_seconds" in r]
    assert SECONDS <= seconds[0] < 1.8 * SECONDS


@pytest.mark.thorough
def test_the_profiler_waits_for_the_step_before(config, done, monkeypatch):
    seen = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda _: seen.append(len(done)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append(len(done)))
    train(changed(config, log__every=50, log__profile=[3, 5], evaluation__every=0, checkpoint__every=0))
    assert seen == [3, 5]


@pytest.mark.thorough
def test_the_clock_stops_only_where_something_is_due(config, monkeypatch):
    paused, pauses = throughput.Meter.paused, []
    monkeypatch.setattr(throughput.Meter, "paused", lambda meter: pauses.append(None) or paused(meter))
    train(config)
    assert len(pauses) == len({4, 8, 12} | {3, 6, 9, 12})


def test_the_profiler_traces_its_window(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(jax.profiler, "start_trace", seen.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append("stop"))
    for window, steps, expected in (
        (None, range(6), [0, 1, 2, 3, 4, 5]),
        ((2, 4), range(6), [0, 1, "trace", 2, 3, "stop", 4, 5]),
        ((2, 9), range(4), [0, 1, "trace", 2, 3, "stop"]),
        ((2, 4), range(3, 6), ["trace", 3, "stop", 4, 5]),
        ((2, 4), range(5, 7), [5, 6]),
    ):
        seen.clear()
        with loop.profiler(window, Path("trace")) as at:
            for step in steps:
                at(step, None)
                seen.append(step)
        assert seen == expected


def test_meter_means_and_speed(config, monkeypatch):
    clock = iter([0.0, 10.0, 12.0, 20.0, 26.0, 30.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(throughput, "peak_flops", lambda: 1e9)
    meter = throughput.Meter(config)
    step = lambda loss, skipped=0: Metrics(*map(np.float32, (loss, 1.0, 0.5)), np.int32(skipped), np.int32(skipped))  # noqa: E731
    assert meter.record(0) is None
    meter.add(step(3.0))  # at 10
    meter.add(step(np.nan, 1))
    meter.add(step(1.0, 1))
    with meter.paused():  # from 12 to 20
        pass
    record = meter.record(3)  # at 26
    assert record is not None
    assert record["train_loss"] == 2.0
    assert (record["skipped"], record["tokens"]) == (1, 3 * 2 * 2 * 16)
    assert record["step_seconds"] == (26 - 10 - 8) / 2
    assert record["tokens_per_second"] == 64 / 4
    assert record["mfu"] == pytest.approx(throughput.flops_per_token(config) * 16 / 1e9)
    assert record["host_memory"] > 1e8


def test_a_record_during_a_pause_starts_the_clock_anew(config, monkeypatch):
    clock = iter([0.0, 10.0, 12.0, 18.0, 20.0, 24.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    meter = throughput.Meter(config)
    step = Metrics(*map(np.float32, (1.0, 1.0, 0.5)), np.int32(0), np.int32(0))
    meter.add(step)  # at 10
    with meter.paused():  # from 12 to 20
        meter.record(1)  # at 18
    meter.add(step)
    record = meter.record(2)  # at 24
    assert record is not None
    assert record["step_seconds"] == 24 - 20


def test_peaks_and_products(config):
    assert throughput.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert throughput.peak_flops("NVIDIA H100 PCIe") == 756e12
    assert throughput.peak_flops("cpu") is None
    assert throughput.peak_flops() is None
    products = models.attention_products(config)
    assert throughput.flops_per_token(config) == 6 * (256 * 256 + products)
