"""What a run measured: one JSON object per line, flushed, and TensorBoard where it is asked for.

Records of training steps have "train_loss", the mean since the record before it; evaluations "validation_loss" and
"evaluated_train_loss", on fixed windows; samples "sample". All have "step", how many updates there had been, and losses
come as "..._bits" too: bits per token, which is per byte for bytes.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megalodon_jax.atomic import replacing
from megalodon_jax.training.evaluation import bits
from megalodon_jax.training.folder import METRICS, TENSORBOARD

Record = dict[str, Any]
Show = Callable[[Record], None]


class Recorder:
    """Appends records to the metrics of a run that stands at `step`; those of later steps are removed first.

    A context manager; `show` gets every record too.
    """

    def __init__(self, run: Path, step: int, tensorboard: bool, show: Show):
        path = run / METRICS
        kept = [record for record in read_metrics(path) if record["step"] <= step] if path.exists() and step else []
        with replacing(path) as file:
            file.writelines(_line(record) for record in kept)
        self._file, self._show = path.open("ab"), show
        self._board = _summary_writer(run / TENSORBOARD, step) if tensorboard else None

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Add a record; losses in nats get their bits beside them, a number that is not finite becomes null."""
        record: Record = {"step": step}
        for name, value in values.items():
            record[name] = None if isinstance(value, float) and not math.isfinite(value) else value
            if name.endswith("loss"):
                record[name.removesuffix("loss") + "bits"] = None if record[name] is None else bits(value)
        self._file.write(_line(record))
        self._file.flush()
        if self._board is not None:
            for name, value in record.items():
                if isinstance(value, float | int) and name != "step":
                    self._board.add_scalar(name, value, step)
        self._show(record)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[Record]:
    """The records of a metrics file; a last line that a kill cut off is left out.

    Raises:
        ValueError: a line is no record; the message names it.
        OSError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no file of metrics: {error}") from error
    records = []
    for number, line in enumerate(lines[:-1], 1):  # behind the last newline there is nothing, or a line cut off
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise ValueError(f"{path}, line {number}, is no record of a run: {line[:60]!r}")
        records.append(record)
    return records


def _line(record: Record) -> bytes:
    return json.dumps(record).encode() + b"\n"


def _summary_writer(folder: Path, step: int) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(folder), purge_step=step + 1)
