"""What the figures of a run depend on: versions and the processor."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

_VARIABLES = ("JAX_", "XLA_", "PALLAS_KERNELS_", "CUDA_VISIBLE_DEVICES")


def versions(*others: str) -> dict[str, str]:
    """Versions of Python, of the libraries that do the arithmetic, and of others."""
    names = ("jax", "jaxlib", "numpy", *others)
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def machine() -> dict[str, str | int]:
    """Processor model and number of cores."""
    return {"cpu": _cpu_model(), "cores": os.cpu_count() or 1}


def variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Of the environment, those that change what jax and the kernels do."""
    return {name: value for name, value in sorted(environment.items()) if name.startswith(_VARIABLES)}


def revision() -> str | None:
    """Of the checkout that this code is in, with "+" for changes; None where it is in none."""
    try:
        hash_, changes = (_git(*words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno")))
    except (OSError, subprocess.CalledProcessError):
        return None
    return hash_ + "+" * bool(changes)


def _git(*words: str) -> str:
    folder = Path(__file__).parent
    return subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True, text=True).stdout.strip()


def load_average() -> float:
    """Runnable processes over the last minute: well above this process's own threads means a busy machine."""
    return os.getloadavg()[0]


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
