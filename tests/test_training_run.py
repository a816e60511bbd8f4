"""Whole runs: going on exactly, being stopped, folders, checkpoints, metrics; on a model that compiles in no time."""

import dataclasses
import json
import re
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax.training import loop
from megalodon_jax.training.checkpoints import NONE_YET, Best, Checkpoints
from megalodon_jax.training.config import TrainingConfig
from megalodon_jax.training.folder import find_point
from megalodon_jax.training.loop import train
from megalodon_jax.training.metrics import Recorder, read_metrics
from megalodon_jax.training.optimizer import make_optimizer
from megalodon_jax.training.run import Run
from megalodon_jax.training.step import State, initial_state
from tests.bigram import bigram, train_bigrams
from tests.training_runs import bigram_run, changed

# Where orbax failed to read one array, threads that read the others find its event loop closed, moments later.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")

LOSSES = ("train_loss", "gradient_norm", "learning_rate", "validation_loss", "evaluated_train_loss")


@pytest.fixture
def config(tmp_path, monkeypatch) -> TrainingConfig:
    return bigram_run(tmp_path, monkeypatch)


def curve(config: TrainingConfig) -> list[dict]:
    """The records without what the clock and the machine say."""
    kept = ("step", *LOSSES)
    records = read_metrics(Path(config.run_dir) / "metrics.jsonl")
    return [{name: record[name] for name in kept if name in record} for record in records]


def final_state(config: TrainingConfig, step: int) -> State:
    like = initial_state(bigram(256), make_optimizer(config.optimizer), config.seed)[0]
    with Checkpoints(Path(config.run_dir) / "checkpoints", None) as checkpoints:
        return checkpoints.restore(step, like)


def assert_same_end(config: TrainingConfig, straight: TrainingConfig) -> None:
    for one, other in zip(*(jax.tree.leaves(final_state(c, 12)) for c in (config, straight)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert curve(config) == curve(straight)


def test_a_run_that_goes_on_ends_as_if_never_interrupted(config, tmp_path, monkeypatch):
    straight = changed(config, run_dir=str(tmp_path / "straight"))
    outcome = train(straight)
    assert outcome.step == 12
    assert outcome.best.step == 12
    losses = [record["validation_loss"] for record in curve(straight) if "validation_loss" in record]
    assert losses == sorted(losses, reverse=True)
    assert [record["step"] for record in curve(straight)] == [0, 2, 3, 4, 4, 6, 8, 8, 9, 10, 12, 12]

    def killed(self, step):  # step 7 has been made, and its record not yet written
        if step == 7:
            raise RuntimeError("killed")
        return made(self, step)

    made = Run.batch
    monkeypatch.setattr(Run, "batch", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train(config)
    monkeypatch.undo()
    train_bigrams(monkeypatch)
    with Path(config.run_dir, "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train_lo')  # cut off by the kill
    train(config, resume="auto")
    assert_same_end(config, straight)


def test_sigterm_saves_and_the_run_can_go_on(config):
    def terminate(record):
        if record["step"] == 4 and "train_loss" in record:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    outcome = train(config, show=terminate)
    assert (outcome.step, outcome.ended_by) == (4, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    point = find_point(config, "auto", False)
    assert point is not None
    assert point.step == 4
    assert int(final_state(config, 4).step) == 4


def test_at_the_end_a_signal_does_what_it_does_elsewhere(config, monkeypatch):
    """Everything is saved, and reading a long text to its end may take long."""
    monkeypatch.setattr(Run, "evaluate_sequentially", lambda *_: signal.raise_signal(signal.SIGINT) or {})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in the background ignore
    try:
        with pytest.raises(KeyboardInterrupt):
            train(changed(config, evaluation__sequential="validation"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert int(final_state(config, 12).step) == 12


def test_two_interrupts_end_at_once(config):
    def interrupt(record):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="at once"):
        train(config, show=interrupt)


def test_patience_ends_a_run_and_the_best_checkpoint_stays(config, monkeypatch):
    losses = iter([9.0, 3.0, 2.0, 2.5, 2.0, 1.0])
    monkeypatch.setattr(Run, "evaluate", lambda self, state: {"validation_loss": next(losses)})
    patient = changed(
        config, steps=50, evaluation__every=2, evaluation__patience=2, checkpoint__every=0, checkpoint__keep=1
    )
    outcome = train(patient)
    assert outcome.step == 8
    assert outcome.best == Best(2.0, 4, 2)
    with Checkpoints(Path(config.run_dir) / "checkpoints", None) as checkpoints:
        assert checkpoints.steps() == [4, 8]
        assert checkpoints.facts(8) == (patient.to_dict(), Best(2.0, 4, 2))
    assert train(patient, resume="auto").step == 8  # it has no patience left


def test_other_settings_do_not_go_on(config):
    train(changed(config, steps=3))
    with pytest.raises(ValueError, match=re.escape("other settings of optimizer.beta1, seed; go on")):
        train(changed(config, seed=1, optimizer__beta1=0.5), resume="auto")
    with pytest.raises(ValueError, match="holds a run already"):
        train(config)
    assert train(changed(config, log__every=5, evaluation__every=0), resume="auto").step == 12


@pytest.mark.thorough
def test_going_on_from_an_older_checkpoint_and_elsewhere(config, tmp_path):
    train(config)
    run = Path(config.run_dir)
    before = curve(config)
    point = find_point(config, str(run / "checkpoints" / "9"), False)
    assert point is not None
    assert (point.step, point.best.step) == (9, 8)
    elsewhere = changed(config, run_dir=str(tmp_path / "other"))
    train(elsewhere, resume=str(run))  # its last step: nothing is left to do
    point = find_point(elsewhere, "auto", False)
    assert point is not None
    assert point.step == 12
    train(changed(config, steps=10), resume=str(run / "checkpoints" / "9"))
    with Checkpoints(run / "checkpoints", None) as checkpoints:
        assert checkpoints.steps()[-1] == 10
    assert [record for record in curve(config) if record["step"] <= 9] == [r for r in before if r["step"] <= 9]
    with pytest.raises(ValueError, match="has no checkpoint"):
        train(config, resume=str(tmp_path))
    with pytest.raises(ValueError, match="has no checkpoint"):
        train(config, resume=str(run / "checkpoints" / "2"))


def test_overwrite_removes_the_run_and_nothing_else(config):
    train(changed(config, steps=3))
    run = Path(config.run_dir)
    (run / "notes.txt").write_text("mine")
    assert train(changed(config, steps=2), overwrite=True).step == 2
    assert (run / "notes.txt").read_text() == "mine"
    assert {record["step"] for record in curve(config)} == {0, 2}
    assert (
        train(changed(config, steps=2, run_dir=str(run.parent / "new")), resume="auto").step == 2
    )  # nothing to resume


def test_nothing_is_written_for_a_run_that_cannot_be(config):
    for wrong, message in (
        ({"data__path": "nowhere"}, "nowhere cannot be read"),
        ({"data__split": [0.5, 0.5, 0], "evaluation__sequential": "test"}, "leaves no test part"),
        ({"data__tokens": "uint16"}, "the data holds token [0-9]+, the model has 256 tokens"),
        ({"data__document_separator": 256}, "below megalodon.vocab_size 256, got 256"),
        ({"gpt": {"depth": 3}}, "unknown key gpt.depth"),
        ({"megalodon": {"width": 3}}, "unknown key megalodon.width"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            train(changed(config, **wrong))
        assert not Path(config.run_dir).exists()


def test_checkpoints_keep_the_latest_and_the_best(tmp_path):
    """And hold what was there when they were saved, though the buffers are used again at once."""
    grow = jax.jit(lambda s: s._replace(parameters=s.parameters + 1, step=s.step + 1), donate_argnums=0)
    counter = lambda: jnp.zeros((), jnp.int32)  # noqa: E731
    fresh = lambda: State(jnp.zeros((300, 300)), (), counter(), jnp.zeros(2, jnp.uint32), counter(), counter())  # noqa: E731
    state, best = fresh(), NONE_YET
    with Checkpoints(tmp_path / "checkpoints", 2) as checkpoints:
        for loss in (5.0, 2.0, 4.0, float("nan"), 3.0):
            state = grow(state)
            best = best.after(loss, int(state.step))
            checkpoints.save(state, {"seed": 1}, best)
    assert best == Best(2.0, 2, 3)
    with Checkpoints(tmp_path / "checkpoints", None) as checkpoints:
        assert checkpoints.steps() == [2, 4, 5]
        assert checkpoints.facts(4) == ({"seed": 1}, Best(2.0, 2, 2))
        for step in (2, 4, 5):
            np.testing.assert_array_equal(checkpoints.restore(step, fresh()).parameters, np.full((300, 300), step))
        with pytest.raises(
            ValueError, match=re.escape("parameters is ((300, 300), 'float32'), expected ((300, 301), 'float32')")
        ):
            checkpoints.restore(5, fresh()._replace(parameters=jnp.zeros((300, 301))))


def test_a_finished_run_without_its_checkpoints_stays(config):
    """`--resume auto` begins anew where nothing is, or this run had begun; nothing else is removed."""
    train(changed(config, steps=3))
    run = Path(config.run_dir)
    shutil.rmtree(run / "checkpoints")
    (run / "final").mkdir()
    with pytest.raises(ValueError, match="holds a run already"):
        train(config, resume="auto")
    (run / "final").rmdir()
    with pytest.raises(ValueError, match="holds a run already"):
        train(changed(config, seed=6), resume="auto")
    assert {record["step"] for record in curve(config)} == {0, 2, 3}
    assert train(config, resume="auto").step == 12  # this very run, ended before its first checkpoint
    other = changed(config, run_dir=str(run.parent / "other"))
    Path(other.run_dir).mkdir()
    (Path(other.run_dir) / "config.yaml").write_text("theirs: 1")
    with pytest.raises(ValueError, match="holds a run already"):
        train(other, resume="auto")
    assert (Path(other.run_dir) / "config.yaml").read_text() == "theirs: 1"


def test_a_damaged_checkpoint_is_named_and_nothing_written(config):
    train(changed(config, steps=3))
    run = Path(config.run_dir)
    for file in (run / "checkpoints" / "3" / "state").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"")
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match=r"the checkpoint of step 3 in .* cannot be read .*; remove it, or go on from"):
        train(config, resume="auto")
    assert (run / "config.yaml").read_bytes() == before


def test_an_unfinished_checkpoint_is_none(config):
    train(changed(config, steps=3))
    folder = Path(config.run_dir) / "checkpoints"
    (folder / "9.orbax-checkpoint-tmp").mkdir()
    point = find_point(config, "auto", False)
    assert point is not None
    assert point.step == 3


def test_records_of_later_steps_are_removed(tmp_path):
    shown = []
    with Recorder(tmp_path, 0, True, shown.append) as recorder:
        recorder.write(1, {"train_loss": np.log(2).item(), "note": "a"})
        recorder.write(2, {"train_loss": float("nan")})
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == shown
    assert shown[0] == {"step": 1, "train_loss": np.log(2), "train_bits": 1.0, "note": "a"}
    assert shown[1] == {"step": 2, "train_loss": None, "train_bits": None}
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train_bits" in events.read_bytes()
    with Recorder(tmp_path, 1, False, shown.append) as recorder:
        recorder.write(2, {"train_loss": 0.5})
    assert [record["train_loss"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [np.log(2), 0.5]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2, is no record of a run: 'nonsense'"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_facts_survive_json():
    best = Best(1 / 3, 7, 2)
    assert Best(**json.loads(json.dumps(best._asdict()))) == best
    assert dataclasses.asdict(loop.Outcome(3, best, None))["best"] == best
