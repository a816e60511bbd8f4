"""The command, killed for real: SIGKILL at a random moment, SIGTERM; the run that goes on ends in the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megalodon_jax.checkpoint import load_checkpoint
from tests import models

ROOT = Path(__file__).parents[1]
STEPS = 60
NOISE = ("absl::InitializeLog()", "Could not find cuda drivers")  # of the CUDA plugin where there is no driver

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    (folder / "text").write_bytes(b"".join(b"%d green bottles hanging on the wall\n" % (n % 10) for n in range(400)))
    config = {
        "steps": STEPS, "batch_size": 2, "accumulate": 2, "output_std": 0.02, "seed": 3,
        "compilation_cache": str(folder / "compiled"),
        "megalodon": {
            "model_dim": 32, "num_layers": 1, "z_dim": 16, "value_dim": 32, "ffn_hidden_dim": 32, "cema_ndim": 2,
            "chunk_size": 16, "norm_num_groups": 16, "dropout": 0.1, "attention_dropout": 0.1,
        },
        "data": {"path": str(folder / "text"), "sequence_length": 32},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 5}, "evaluation": {"every": 15, "windows": 4},
        "checkpoint": {"every": 4}, "log": {"every": 3},
    }  # fmt: skip
    (folder / "config.yaml").write_text(json.dumps(config))
    return folder


def start(folder: Path, run: str, *options: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-m", "megalodon_jax", "train", "--config", str(folder / "config.yaml")]
    return subprocess.Popen(
        [*command, *options, f"run_dir={folder / run}"], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> tuple[int, str]:
    out, errors = process.communicate(timeout=600)
    errors = [line for line in errors.splitlines() if not any(noise in line for noise in NOISE)]
    return process.returncode, out + "\n".join(errors)


def curve(run: Path) -> list[dict]:
    """All numbers but those of the clock and the machine."""
    left_out = {"step_seconds", "tokens_per_second", "host_memory"}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name not in left_out} for record in records]


@pytest.fixture(scope="module")
def straight(folder) -> Path:
    code, out = finish(start(folder, "straight"))
    assert code == 0, out
    return folder / "straight"


def wait_for_checkpoints(run: Path, process: subprocess.Popen, least: int) -> None:
    """Until so many steps are saved, and not yet all."""
    while process.poll() is None:
        if any(path.name.isdigit() and int(path.name) >= least for path in (run / "checkpoints").glob("*")):
            return
        time.sleep(0.005)
    pytest.fail(f"the run ended before it could be killed: {finish(process)}")


@pytest.mark.parametrize("attempt", range(3))
def test_killed_at_a_random_moment(folder, straight, attempt):
    run, delay = folder / f"killed_{attempt}", random.Random().uniform(0, 0.3)
    process = start(folder, run.name)
    wait_for_checkpoints(run, process, 4)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"it ended before it was killed, after {delay} s"
    code, out = finish(start(folder, run.name, "--resume", "auto"))
    assert code == 0, out
    assert "going on from step" in out
    models.assert_same(load_checkpoint(run / "final"), load_checkpoint(straight / "final"))
    assert curve(run) == curve(straight), f"killed after {delay} s"


def test_sigterm_saves_and_says_so(folder, straight):
    run = folder / "terminated"
    process = start(folder, run.name)
    wait_for_checkpoints(run, process, 8)
    process.terminate()
    code, out = finish(process)
    assert code == 143, out
    assert "terminated; the checkpoint of step" in out
    assert not (run / "final").exists()
    code, out = finish(start(folder, run.name, "--resume", "auto"))
    assert code == 0, out
    models.assert_same(load_checkpoint(run / "final"), load_checkpoint(straight / "final"))
