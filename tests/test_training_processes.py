"""The command as two processes on this machine, each with one CPU device: the run is that of one process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megalodon_jax.checkpoint import load_checkpoint
from megalodon_jax.cli.main import main
from megalodon_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[1]
CONFIG = {
    "steps": 5, "batch_size": 4, "accumulate": 1, "output_std": 0.02, "seed": 3,
    "megalodon": {
        "model_dim": 32, "num_layers": 1, "z_dim": 16, "value_dim": 32, "ffn_hidden_dim": 32, "cema_ndim": 2,
        "chunk_size": 16, "norm_num_groups": 16,
    },
    "data": {"sequence_length": 32}, "optimizer": {"learning_rate": 0.01},
    "evaluation": {"every": 2, "windows": 4, "sequential": "validation"},
    "checkpoint": {"every": 2}, "log": {"every": 1}, "samples": {"every": 4, "prompt_length": 8, "length": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    text = folder / "text"
    text.write_bytes(b"".join(b"%d green bottles hanging on the wall\n" % (n % 10) for n in range(200)))
    values = CONFIG | {"compilation_cache": str(folder / "compiled")}
    values["data"] = CONFIG["data"] | {"path": str(text)}
    (folder / "config.yaml").write_text(json.dumps(values))
    return folder


def start(folder: Path, *options: str) -> subprocess.Popen:
    flags = "--xla_backend_optimization_level=0"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-m", "megalodon_jax", "train", "--config", str(folder / "config.yaml")]
    return subprocess.Popen(
        [*command, *options], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def two(folder: Path, *options: str) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    where = ("--coordinator", address, "--processes", "2", "--process")
    return [start(folder, *where, str(number), *options) for number in range(2)]


def finish(processes: list[subprocess.Popen], code: int = 0) -> list[str]:
    out = [process.communicate(timeout=1200)[0] for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), "\n----\n".join(out)
    return out


def records(run: Path) -> list[dict]:
    """Without what the clock and the machine say, and text."""
    left_out = {"step_seconds", "tokens_per_second", "host_memory", "sample", "prompt", "context"}
    return [{k: v for k, v in record.items() if k not in left_out} for record in read_metrics(run / "metrics.jsonl")]


def assert_close(one: list[dict], other: list[dict]) -> None:
    assert [record["step"] for record in one] == [record["step"] for record in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


@pytest.fixture(scope="module")
def alone(folder):
    finish([start(folder, f"run_dir={folder / 'alone'}")])
    return folder / "alone"


@pytest.mark.thorough
@pytest.mark.parametrize("mesh", ["{data: 2}", "{fsdp: 2}"])
def test_two_processes_are_one_run(folder, alone, mesh):
    run = folder / mesh[1:5]
    first, second = finish(two(folder, f"run_dir={run}", f"mesh={mesh}"))
    assert "on 2 devices" in first
    assert "5 steps" not in second
    assert_close(records(run), records(alone))
    text = [record["prompt"] for record in read_metrics(run / "metrics.jsonl") if "sample" in record]
    assert text == [record["prompt"] for record in read_metrics(alone / "metrics.jsonl") if "sample" in record]
    assert load_checkpoint(run / "final").config == load_checkpoint(alone / "final").config
    finish([start(folder, f"run_dir={run}", "steps=7", "--resume", "auto")])  # on one device again
    assert records(run)[-1]["step"] == 7


@pytest.mark.thorough
def test_a_signal_to_one_process_ends_both_at_the_same_step(folder):
    run = folder / "terminated"
    processes = two(folder, f"run_dir={run}", "mesh={fsdp: 2}", "steps=100000", "samples.every=0")
    while not any(path.name.isdigit() for path in (run / "checkpoints").glob("*")):
        assert processes[0].poll() is None, finish(processes)
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGTERM)
    first, _ = finish(processes, 143)
    assert "terminated; the checkpoint of step" in first


def test_options_of_processes(folder, capsys):
    for options, message in (
        (["--coordinator", "127.0.0.1:1"], "give all of --coordinator, --processes and --process, or --distributed"),
        (["--process", "0", "--distributed"], "give all of --coordinator"),
        (
            ["--coordinator", "127.0.0.1:1", "--processes", "2", "--process", "2"],
            "--process must be from 0 up to, not including, --processes, got 2 of 2",
        ),
        (["--coordinator", "host", "--processes", "2", "--process", "0"], "--coordinator must be HOST:PORT, such as"),
        (["--coordinator", "host:p", "--processes", "2", "--process", "0"], "such as 10.0.0.1:1234, got host:p"),
    ):
        assert main(["train", "--config", str(folder / "config.yaml"), *options]) == 2
        assert message in capsys.readouterr().err
