"""How long a program takes, and in which turns programs are measured.

Two figures for each call, taken in two runs of it, each after the L2 cache was filled with something else:

    wall      from the call until its results are there, launches by the host included
    device    how long at least one kernel or copy was running, as the profiler saw it; None where it saw no GPU

Programs are compared by the second, or all of them by the first where the profiler missed one call.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp

from bench.gpu.device import Device, cache_bytes
from bench.measure import turns

WARM_UP = 2  # calls

Run = Callable[[], object]  # returns when its work is done
Clock = Callable[[Run], "Sample"]


@dataclass(frozen=True)
class Sample:
    """One call, in milliseconds."""

    wall_ms: float
    device_ms: float | None = None


def interleaved(programs: Mapping[str, Run], rounds: int, clock: Clock) -> dict[str, list[Sample]]:
    """One sample per program and round: a, b, c, then c, b, a, and so on, after calls to warm up."""
    for run in programs.values():
        for _ in range(WARM_UP):
            run()
    samples: dict[str, list[Sample]] = {name: [] for name in programs}
    for name in turns(programs, rounds):
        samples[name].append(clock(programs[name]))
    return samples


def comparable(samples: Mapping[str, Sequence[Sample]]) -> tuple[str, dict[str, list[float]]]:
    """What programs are compared by, "device" or "wall", and that of every sample, in milliseconds."""
    device = {name: [one.device_ms for one in found if one.device_ms is not None] for name, found in samples.items()}
    if all(len(device[name]) == len(found) for name, found in samples.items()):
        return "device", device
    return "wall", {name: [one.wall_ms for one in found] for name, found in samples.items()}


def clock_of(device: Device) -> Clock:
    """The clock for programs on a device; on CPU wall time alone, with caches as they are."""
    if device.platform != "gpu":
        return lambda run: Sample(_wall_ms(run))
    flush = l2_flush(cache_bytes(device))

    def measure(run: Run) -> Sample:
        flush()
        wall = _wall_ms(run)
        flush()
        return Sample(wall, _device_ms(run))

    return measure


def l2_flush(bytes_of_cache: int) -> Run:
    """A program that reads and writes twice as many bytes as the cache holds."""
    touch = jax.jit(lambda buffer: buffer + 1, donate_argnums=0)
    held = [jnp.zeros(2 * bytes_of_cache // 4, jnp.int32)]

    def flush() -> None:
        held[0] = touch(held[0]).block_until_ready()

    return flush


def _wall_ms(run: Run) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def _device_ms(run: Run) -> float | None:
    options = jax.profiler.ProfileOptions()
    options.host_tracer_level = options.python_tracer_level = 0
    with TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        files = list(Path(folder).rglob("*.xplane.pb"))
        return busy_ms(jax.profiler.ProfileData.from_file(str(files[0])).planes) if files else None


def busy_ms(planes: Iterable) -> float | None:
    """Milliseconds in which a GPU was busy, by the planes of a profile: the union of the intervals of its streams."""
    intervals = sorted(
        (event.start_ns, event.start_ns + event.duration_ns)
        for plane in planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    )
    if not intervals:
        return None
    busy, end = 0.0, float("-inf")
    for start, stop in intervals:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return busy / 1e6
