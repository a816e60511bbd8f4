"""Training beside PyTorch, the float64 program it is compared in, and the runs of the comparison."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bench import __main__ as command_line
from bench.training import parity
from bench.training.widen import to_float64, widened
from megalodon_jax.training import models
from megalodon_jax.training.config import Optimizer, TrainingConfig
from megalodon_jax.training.metrics import read_metrics
from tests.bigram import train_bigrams

TEXT = b"".join(b"%d green bottles hanging on the wall\n" % (count % 10) for count in range(200))
TINY = [
    "steps=3", "batch_size=2", "data.sequence_length=16", "evaluation.every=2", "evaluation.windows=3", "log.every=1",
    "megalodon.num_layers=1", "megalodon.chunk_size=8", "llama.depth=1",
]  # fmt: skip


def program(x, q):
    """A loop, a condition, a sum over indices, complex numbers, a checkpoint, and 1/3, which is no float32."""

    def step(carry, one):
        return carry * jnp.float32(1 / 3) + one.astype(jnp.float32), jnp.real(q * carry.astype(jnp.complex64))

    carry, found = lax.scan(jax.checkpoint(step), jnp.float32(0), x)
    picked = lax.cond(carry > 0, lambda: x[jnp.array([0, 0, 1])], lambda: x[:3])
    return jnp.sum(found) + jnp.sum(jnp.sqrt(jax.nn.silu(picked) ** 2)), x.dtype == jnp.float32


def test_a_program_in_float64():
    x, q = jnp.linspace(0.1, 0.9, 5, dtype=jnp.float32), jnp.complex64(0.3 + 0.4j)
    wide = widened(lambda x, q: jax.value_and_grad(program, has_aux=True)(x, q), x, q, exact=(1 / 3,))
    with jax.enable_x64(True):
        (value, was_float32), gradient = wide(to_float64(x), to_float64(q))
    assert (value.dtype, gradient.dtype, bool(was_float32)) == (jnp.float64, jnp.float64, True)

    def exactly(x):
        carry = total = 0.0
        for one in x:
            total, carry = total + (np.complex128(np.complex64(0.3 + 0.4j)) * carry).real, carry / 3 + one
        return total + sum(one / (1 + np.exp(-one)) for one in x[[0, 0, 1]])

    given = np.asarray(x, np.float64)
    np.testing.assert_allclose(value, exactly(given), rtol=1e-14)
    nudges = 1e-6 * np.eye(5)
    slopes = [(exactly(given + nudge) - exactly(given - nudge)) / 2e-6 for nudge in nudges]
    np.testing.assert_allclose(gradient, slopes, rtol=1e-8)


def small(steps: int, **megalodon) -> TrainingConfig:
    sizes = parity.CONFIG["megalodon"] | {"model_dim": 32, "z_dim": 16, "value_dim": 32, "chunk_size": 4} | megalodon
    return TrainingConfig.from_dict(
        parity.CONFIG | {"steps": steps, "batch_size": 2, "megalodon": sizes, "data": {"sequence_length": 10}}
    )


@pytest.mark.thorough
def test_training_is_that_of_pytorch(torch_oracle, tmp_path):
    record = parity.measure(small(steps=20))
    assert all(one["met"] for one in record["targets"]), record["targets"]
    assert record["differences"]["float64"][parity.OURS] < 1e-10  # what the target leaves room for is not needed
    assert record["losses"]["float64"][parity.OURS][-1] < record["losses"]["float64"][parity.OURS][0]
    assert parity.text(record).count("target") == 2
    json.dumps(record)


def test_another_optimizer_is_seen(torch_oracle, monkeypatch):
    """The targets can be missed."""
    near, far = [3.0, 2.0], [3.0, 2.0 + 2e-4]
    found = {"float64": {parity.TORCH: near, parity.OURS: near}, "float32": {parity.TORCH: near, parity.OURS: far}}
    assert [one.met for one in parity.verdicts(found)] == [True, False]
    found["float32"][parity.MOVED] = [3.0 + 1e-4, 2.0]  # two right runs are as far apart: three times that is allowed
    assert [one.met for one in parity.verdicts(found)] == [True, True]


def test_the_oracle_has_no_other_optimizer(torch_oracle):
    from bench.training.torch_side import TorchTraining

    with pytest.raises(ValueError, match="must be adamw"):
        TorchTraining(None, Optimizer(name="adam_l2"), "float32")


def test_the_models_are_of_a_size():
    pytest.importorskip("yaml", reason="the extra train is not installed")
    from bench.training.comparison import MODELS, Request

    configs = [Request(Path("enwik6.gz"), Path("runs")).config(name, 0) for name in MODELS]
    assert [config.model for config in configs] == ["megalodon", "megalodon", "llama"]
    assert [config.megalodon.get("init_mode") for config in configs] == ["he", "bert", None]
    for config in configs:
        assert 1_000_000 < sum(models.parameter_sizes(config).values()) < 1_200_000
        assert config.steps * config.batch_size * config.data.sequence_length >= 2 * 900_000
        assert (config.evaluation.windows or 0) * config.data.sequence_length >= 50_000 - 1
    assert len({(c.steps, c.batch_size, c.data, c.optimizer, c.evaluation) for c in configs}) == 1


@pytest.fixture
def text(tmp_path) -> Path:
    (tmp_path / "text").write_bytes(TEXT)
    return tmp_path / "text"


def command(text: Path, folder: Path, *more: str, changed: str = "seed=0") -> None:
    arguments = ["--suite", "comparison", "--data", str(text), "--runs", str(folder), "--seeds", "2"]
    command_line.main(["training", *arguments, *more, "--set", *TINY, changed])


def test_complete_runs_are_not_made_again(torch_oracle, text, tmp_path, monkeypatch, capsys):
    pytest.importorskip("yaml", reason="the extra train is not installed")
    from bench.training import comparison, torch_run

    train_bigrams(monkeypatch)
    monkeypatch.setattr(torch_run, "train_by_torch", lambda config, show: comparison.train(config, show=show))
    command(text, tmp_path / "runs", "--out", str(tmp_path / "curves.png"), "--json", str(tmp_path / "all.json"))
    printed = capsys.readouterr().out
    assert "bytes of validation" in printed
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "all.json").read_text())
    assert {name: len(row["last"]) for name, row in record["runs"].items()} == {
        "megalodon": 2, "megalodon_bert": 2, "llama": 2, comparison.ORACLE: 1
    }  # fmt: skip
    assert set(record["compressors"]) == {"unigram entropy", "gzip", "bzip2"}
    monkeypatch.setattr(comparison, "make", None)
    command(text, tmp_path / "runs")
    assert capsys.readouterr().out == printed
    for changed in ("steps=1", "batch_size=4"):
        with pytest.raises(SystemExit, match="2"):
            command(text, tmp_path / "runs", changed=changed)
        assert f"megalodon_0 has a run with another {changed[:-2]}; give another folder" in capsys.readouterr().err


def test_the_shipped_records_are_of_the_shipped_configs():
    pytest.importorskip("yaml", reason="the extra train is not installed")
    from bench.training.comparison import Request, is_complete

    request = Request(Path("enwik6.gz"), Path(__file__).parents[1] / "bench" / "training" / "enwik6")
    assert all(is_complete(request.config(name, seed)) for name, seed in request.all())


@pytest.mark.thorough
def test_the_oracle_beside_a_run(torch_oracle, text, tmp_path):
    """From the same weights, on the same batches: the same losses, as far as float32 goes."""
    from bench.training import comparison

    request = comparison.Request(text, tmp_path, 1, TINY)
    for name in (comparison.TWIN, comparison.ORACLE):
        comparison.make(name, request.config(name, 0))
    ours, theirs = (
        read_metrics(request.folder(name, 0) / "metrics.jsonl") for name in (comparison.TWIN, comparison.ORACLE)
    )
    for key, count in (("train_loss", 3), ("validation_loss", 3)):
        one, other = ([record[key] for record in records if key in record] for records in (ours, theirs))
        assert len(one) == len(other) == count
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "text"], "--suite parity takes no other option than --json"),
        (["--suite", "comparison"], "needs --data FILE and --runs FOLDER"),
        (["--suite", "comparison", "--data", "no-file", "--runs", "r", "--set", "stepz=3"], "stepz"),
    ],
)
def test_bad_arguments(arguments, message, capsys, torch_oracle):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["training", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
