"""What the figures of a run depend on: versions and the processor."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that do the arithmetic."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("jax", "jaxlib", "numpy")}}


def machine() -> dict[str, str | int]:
    """Processor model and number of cores."""
    return {"cpu": _cpu_model(), "cores": os.cpu_count() or 1}


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
