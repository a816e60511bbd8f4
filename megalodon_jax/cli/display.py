"""Progress of a run on the terminal: a rich bar, or plain lines where stdout is not a terminal."""

from collections import deque
from collections.abc import Generator, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from megalodon_jax.cli.loop import Progress as Record

_MEAN_OF = 20  # steps


def show(records: Iterator[Record]) -> Generator[Record, None, None]:
    """Pass `records` on, showing each: bits per byte (training: mean of the last 20 steps), bytes/s, time left."""
    console = Console(highlight=False, soft_wrap=True)
    columns = (BarColumn(20), TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
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


def _mean(losses: deque[float]) -> str:
    return f"{sum(losses) / len(losses):5.3f}" if losses else "    -"


def _speed(record: Record) -> str:
    if not record.fraction:
        return ""
    left = int(record.seconds * (1 / record.fraction - 1))
    return f"   {record.bytes_seen / record.seconds:>7.0f} bytes/s   {left // 60}:{left % 60:02d} left"
