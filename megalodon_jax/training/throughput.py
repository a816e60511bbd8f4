"""How fast a run is, of what the device could do, and how much memory it needs.

    FLOPs per token = 6 P + 6 a      P: parameters that inputs are multiplied with     a: products of attention

(a multiplication and an addition, forward once and backward twice); the EMA and the norms are left out. The share of
the device's peak (MFU) is that of bfloat16 products with float32 sums, dense, from the makers' data sheets.
"""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from megalodon_jax.training import models
from megalodon_jax.training.config import TrainingConfig
from megalodon_jax.training.step import Metrics

# Part of jax's device_kind -> FLOP/s; the first that fits counts.
_PEAKS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
    "L40": 181e12, "L4": 121e12,
    "RTX 5090": 209.5e12, "RTX 4090": 165.2e12, "RTX 3090": 71e12,
}  # fmt: skip


class Meter:
    """Metrics of steps, left on the device until a record is asked for; the clock stands still while `paused`."""

    def __init__(self, config: TrainingConfig):
        self._tokens = config.accumulate * config.batch_size * config.data.sequence_length
        self._flops, self._devices = flops_per_token(config), config.mesh.data * config.mesh.fsdp
        self._waiting: list[Metrics] = []
        self._since, self._timed, self._compiled = time.perf_counter(), 0, False

    def add(self, metrics: Metrics) -> None:
        """One more step. The first one, which compiles, is not timed."""
        self._waiting.append(metrics)
        if self._compiled:
            self._timed += 1
        else:
            jax.block_until_ready(metrics)
            self._since, self._compiled = time.perf_counter(), True

    def record(self, step: int) -> dict[str, Any] | None:
        """Means over the steps since the last record, after waiting for them; None if there were none."""
        if not self._waiting:
            return None
        found: list[Metrics] = jax.device_get(self._waiting)
        now = time.perf_counter()
        seconds = (now - self._since) / self._timed if self._timed else None
        self._waiting, self._since, self._timed = [], now, 0
        last = found[-1]
        record = {
            "train_loss": _mean([metrics.loss for metrics in found]),
            "gradient_norm": _mean([metrics.gradient_norm for metrics in found]),
            "learning_rate": float(last.learning_rate), "skipped": int(last.skipped), "bad_in_a_row": int(last.bad),
            "tokens": step * self._tokens, **peak_memory(),
        }  # fmt: skip
        return record if seconds is None else record | self._speed(seconds)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For what is not training: the steps so far are waited for before, the clock goes on after."""
        jax.block_until_ready(self._waiting)
        begun = time.perf_counter()
        yield
        self._since += time.perf_counter() - max(begun, self._since)  # a record made meanwhile began anew

    def _speed(self, seconds: float) -> dict[str, float]:
        speed = {"step_seconds": seconds, "tokens_per_second": self._tokens / seconds}
        peak = peak_flops()
        return speed if peak is None else speed | {"mfu": self._flops * self._tokens / seconds / (peak * self._devices)}


def flops_per_token(config: TrainingConfig) -> int:
    """Floating-point operations of forward and backward for one token, as above."""
    return 6 * (models.multiplied_parameters(config) + models.attention_products(config))


def peak_flops(kind: str | None = None) -> float | None:
    """What a device of that kind (None: the first here) can do in a second; None if it is not known, as for a CPU."""
    kind = jax.local_devices()[0].device_kind if kind is None else kind
    return next((peak for name, peak in _PEAKS.items() if name in kind), None)


def peak_memory() -> dict[str, int]:
    """The most bytes in use so far: of the first device here where it says so, else of this process."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return {"device_memory": stats["peak_bytes_in_use"]}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"host_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def _mean(values: list[Any]) -> float:
    """Of those that are finite; NaN if none is."""
    finite = [float(value) for value in values if np.isfinite(value)]
    return sum(finite) / len(finite) if finite else float("nan")
