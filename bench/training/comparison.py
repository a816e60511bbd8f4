"""Suite `comparison`: Megalodon and Llama on the same bytes from several seeds, and the PyTorch oracle beside one run.

    RUNS/MODEL_SEED/    a run as `python -m megalodon_jax train` makes it, of one of the configs in this folder

A run that is complete is not made again and one that was interrupted goes on: the command may be stopped and given
again. Evaluations read all of the validation part. The oracle begins with the weights of one run and gets its batches.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import jax

from bench import environment, report
from megalodon_jax.cli.compressors import baselines
from megalodon_jax.cli.figures import save_loss_curves
from megalodon_jax.training import models
from megalodon_jax.training.config import TrainingConfig
from megalodon_jax.training.config_files import load
from megalodon_jax.training.folder import CONFIG, METRICS
from megalodon_jax.training.loop import train
from megalodon_jax.training.metrics import Record, read_metrics
from megalodon_jax.training.sources import read_tokens
from megalodon_jax.training.splits import split

SEEDS = 3
GUESSING = 8.0  # bits per byte of a model that knows nothing: the top of the picture
MODELS = {
    "megalodon": ("megalodon.yaml", []),
    "megalodon_bert": ("megalodon.yaml", ["megalodon.init_mode=bert"]),
    "llama": ("llama.yaml", []),
}
ORACLE, TWIN = "pytorch_megalodon_bert", "megalodon_bert"
STYLES = {name: {"color": f"C{number}"} for number, name in enumerate(MODELS)}
STYLES[ORACLE] = {"color": "black", "linestyle": ":"}


@dataclass(frozen=True)
class Request:
    """What is asked for: text, folder of the runs, seeds, and overrides of every config."""

    data: Path
    runs: Path
    seeds: int = SEEDS
    overrides: Sequence[str] = ()

    def config(self, name: str, seed: int) -> TrainingConfig:
        """Of a run."""
        file, changes = MODELS[TWIN if name == ORACLE else name]
        own = [f"data.path={self.data}", f"run_dir={self.folder(name, seed)}", f"seed={seed}"]
        return load(str(Path(__file__).parent / file), [*changes, *self.overrides, *own])

    def folder(self, name: str, seed: int) -> Path:
        """Of a run."""
        return self.runs / f"{name}_{seed}"

    def all(self) -> list[tuple[str, int]]:
        """Every run, by name and seed; a seed of all models before the next one, the oracle last."""
        return [*((name, seed) for seed in range(self.seeds) for name in MODELS), (ORACLE, 0)]


def run(request: Request, picture: Path | None = None, json_file: Path | None = None) -> None:
    """Make what runs are missing, print the table, draw the curves."""
    jax.config.update("jax_platforms", "cpu")
    for name, seed in request.all():
        if not is_complete(request.config(name, seed)):
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            make(name, request.config(name, seed))
    record = summary(request)
    print(text(record))
    if picture is not None:
        curves = {f"{name}_{seed}": read_metrics(request.folder(name, seed) / METRICS) for name, seed in request.all()}
        styles = {f"{name}_{seed}": STYLES[name] for name, seed in request.all()}
        save_loss_curves(curves, picture, record["compressors"], GUESSING, styles)
    if json_file is not None:
        report.write_json(record, json_file)


def is_complete(config: TrainingConfig) -> bool:
    """Has the run been evaluated at its end?

    Raises:
        ValueError: there is a run with other settings.
    """
    folder = Path(config.run_dir)
    if not ((folder / CONFIG).exists() and (folder / METRICS).exists()):
        return False
    there = load(str(folder / CONFIG))
    differing = [*config.differences(there), *(["steps"] if config.steps != there.steps else [])]
    if differing := [key for key in differing if key != "data.path"]:
        raise ValueError(f"{folder} has a run with another {', '.join(differing)}; give another folder with --runs")
    return any(step == config.steps for step, _ in _validation(read_metrics(folder / METRICS)))


def make(name: str, config: TrainingConfig) -> None:
    """Train.

    Raises:
        SystemExit: a signal ended the run; it has been saved.
    """
    if name == ORACLE:
        from bench.training.torch_run import train_by_torch

        train_by_torch(config, _show)
    elif (outcome := train(config, resume="auto", show=_show)).ended_by is not None:
        raise SystemExit(128 + outcome.ended_by)


def summary(request: Request) -> dict[str, Any]:
    """The finished runs as plain data: validation in bits per byte at step 0 and at the end; compressors beside."""
    rows = {}
    for name, seed in request.all():
        config, records = request.config(name, seed), read_metrics(request.folder(name, seed) / METRICS)
        seen = config.steps * config.accumulate * config.batch_size * config.data.sequence_length
        parameters = sum(models.parameter_sizes(config).values())
        row = rows.setdefault(name, {"parameters": parameters, "bytes_seen": seen, "first": [], "last": []})
        found = dict(_validation(records))
        row["first"].append(found[0])
        row["last"].append(found[config.steps])
    config = request.config(TWIN, 0)
    parts = split(read_tokens(config.data.path), config.data.split, config.data.sequence_length + 1)
    return {
        "versions": environment.versions("torch"),
        "revision": environment.revision(),
        "machine": environment.machine(),
        "data": {"train": len(parts.train), "validation": len(parts.validation)},
        "config": {name: request.config(name, 0).to_dict() for name in MODELS},
        "runs": rows,
        "compressors": baselines(parts.validation),
    }


def text(record: dict[str, Any]) -> str:
    """The table of a record."""
    sizes = record["data"]
    rows = [
        [
            name, f"{row['parameters']:,}", f"{row['bytes_seen']:,}", f"{row['bytes_seen'] / sizes['train']:.2f}",
            str(len(row["last"])), f"{mean(row['first']):.3f}", f"{mean(row['last']):.3f}",
            f"{max(row['last']) - min(row['last']):.3f}" if len(row["last"]) > 1 else "-",
        ]
        for name, row in record["runs"].items()
    ]  # fmt: skip
    rows += [[name, "", "", "", "", "", f"{bits:.3f}", ""] for name, bits in record["compressors"].items()]
    header = ["", "parameters", "bytes seen", "passes", "seeds", "step 0", "end: mean", "spread"]
    return "\n".join(
        [
            ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
            f"bits per byte of all {sizes['validation']:,} bytes of validation; compressors see them alone",
            report.table(header, rows, left=1),
        ]
    )


def _validation(records: Sequence[Record]) -> list[tuple[int, float]]:
    return [(r["step"], r["validation_bits"]) for r in records if r.get("validation_bits") is not None]


def _show(record: Record) -> None:
    shown = {key: round(value, 3) for key, value in record.items() if key == "step" or key.endswith("_bits")}
    print(", ".join(f"{key} {value}" for key, value in shown.items()), file=sys.stderr, flush=True)
