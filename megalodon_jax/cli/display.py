"""Progress of a run on the terminal: a rich bar, or plain lines where stdout is not a terminal."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from megalodon_jax.cli.loop import Progress as Record

_MEAN_OF = 20  # steps


def show(records: Iterator[Record]) -> Generator[Record, None, None]:
    """Pass `records` on, showing each: bits per byte (training: mean of the last 20 steps), bytes/s, time left."""
    with _bar() as bar:
        task = bar.add_task("", total=1.0)
        recent: deque[float] = deque(maxlen=_MEAN_OF)
        for record in records:
            if record.train is not None:
                recent.append(record.train)
            line = f"train {_mean(recent)} bits/byte{_speed(record)}"
            if record.held_out is not None:
                bar.console.print(f"step {record.step:>5}   held out {record.held_out:5.3f}   {line}")
            bar.update(task, completed=record.fraction, description=line)
            yield record


@contextmanager
def training(steps: int, unit: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Shows the records of `megalodon_jax.training.metrics`: a terminal keeps one line for those of training steps."""
    with _bar() as bar:
        task = bar.add_task("", total=steps)

        def show(record: dict[str, Any]) -> None:
            line, console = f"step {record['step']:>6}   {describe(record, unit)}", bar.console
            if "train_loss" in record and console.is_terminal:
                bar.update(task, completed=record["step"], description=escape(line))
            else:
                console.print(line, markup=False)

        yield show


def describe(record: dict[str, Any], unit: str) -> str:
    """One line of a record, whose tokens are called `unit`; text of samples with its newlines as \\\\n."""
    if "sample" in record:
        return f"{record['prompt']!r} goes on {record['sample']!r}"
    parts = [
        f"{name.removesuffix('_bits').replace('_', ' ')} {'not finite' if value is None else f'{value:.3f}'}"
        for name, value in record.items()
        if name.endswith("_bits")
    ]
    parts = [f"{', '.join(parts)} bits/{unit}"]
    if "tokens_per_second" in record:
        parts.append(f"{record['tokens_per_second']:.0f} {unit}s/s, {1000 * record['step_seconds']:.0f} ms/step")
    if "mfu" in record:
        parts.append(f"{100 * record['mfu']:.1f} % of peak")
    if memory := record.get("device_memory", record.get("host_memory")):
        parts.append(f"{memory / 2**30:.2f} GiB")
    if record.get("skipped"):
        parts.append(f"{record['skipped']} steps skipped")
    if "context" in record:
        parts.append(record["context"])
    return "   ".join(parts)


def _bar() -> Progress:
    console = Console(highlight=False, soft_wrap=True)
    columns = (BarColumn(20), TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.description}"))
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _mean(losses: deque[float]) -> str:
    return f"{sum(losses) / len(losses):5.3f}" if losses else "    -"


def _speed(record: Record) -> str:
    if not record.fraction:
        return ""
    left = int(record.seconds * (1 / record.fraction - 1))
    return f"   {record.bytes_seen / record.seconds:>7.0f} bytes/s   {left // 60}:{left % 60:02d} left"
