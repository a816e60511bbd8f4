"""A short run of the smallest model, for tests of what is around it."""

from pathlib import Path

import pytest

from megalodon_jax.training.config import TrainingConfig
from tests.bigram import train_bigrams

TEXT = b"".join(b"%d green bottles hanging on the wall\n" % (count % 10) for count in range(100))


def bigram_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingConfig:
    """Twelve steps in `folder`, evaluated every 4, saved every 3; from here on runs train bigrams."""
    train_bigrams(monkeypatch)
    (folder / "text").write_bytes(TEXT)
    return TrainingConfig.from_dict(
        {
            "run_dir": str(folder / "run"), "steps": 12, "batch_size": 2, "accumulate": 2, "seed": 5,
            "data": {"path": str(folder / "text"), "sequence_length": 16},
            "optimizer": {"learning_rate": 0.1, "schedule": "constant", "warmup_steps": 4},
            "evaluation": {"every": 4, "windows": 3}, "checkpoint": {"every": 3, "keep": 2}, "log": {"every": 2},
        }
    )  # fmt: skip


def changed(config: TrainingConfig, **changes) -> TrainingConfig:
    """With `section__field=value` or `field=value`."""
    values = config.to_dict()
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (values[section] if section else values)[field] = value
    return TrainingConfig.from_dict(values)
