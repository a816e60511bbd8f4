"""The compilers that need no GPU: XLA's CUDA plugin, ptxas and nvdisasm, all from wheels.

Static counts move with compiler versions, so the tools are the pinned ones of the extra `inspect` and never what the
PATH happens to hold. Where a wheel is missing, `missing` says so in one line; where another version is installed,
`unpinned` does, and tests of exact figures skip on it.
"""

import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

PINNED = {"ptxas": "12.9.86", "nvdisasm": "13.5.37"}

_WHEELS = {
    "plugin": ("jax-cuda12-plugin", "jax-cuda13-plugin"),
    "ptxas": ("nvidia-cuda-nvcc-cu12", "nvidia-cuda-nvcc"),
    "nvdisasm": ("nvidia-cuda-nvdisasm",),
}
_INSTALL = "install the extra: pip install 'megalodon-pallas[inspect]'"


class ToolsMissing(RuntimeError):
    """A wheel of the extra `inspect` is not installed."""


@dataclass(frozen=True)
class Tool:
    """An executable of an installed wheel."""

    path: Path
    version: str


def missing() -> str | None:
    """Why nothing can be compiled here, in one line; None if everything is there and fits together."""
    if not sys.platform.startswith("linux"):
        return f"the CUDA compilers run on Linux only, this is {sys.platform}"
    for tool, wheels in _WHEELS.items():
        found = _installed(wheels)
        if found is None:
            return f"{' or '.join(wheels)} is not installed; {_INSTALL}"
        if tool == "plugin":
            if version(found) != version("jaxlib"):
                return f"{found} {version(found)} does not fit jaxlib {version('jaxlib')}; {_INSTALL}"
        elif _executable(found, tool) is None:
            return f"{found} holds no executable {tool}; {_INSTALL}"
    return None


def unpinned() -> str | None:
    """Why exact static figures may differ here, in one line; None if the pinned versions are installed."""
    if (reason := missing()) is not None:
        return reason
    for tool, wanted in PINNED.items():
        if (installed := find(tool).version) != wanted:
            return f"static figures are those of {tool} {wanted}, {installed} is installed"
    return None


def find(tool: str) -> Tool:
    """The executable `"ptxas"` or `"nvdisasm"`.

    Raises:
        ToolsMissing: its wheel is not installed.
        ValueError: another name.
    """
    if tool not in PINNED:
        raise ValueError(f"tool must be one of {', '.join(PINNED)}, got {tool!r}.")
    wheel = _installed(_WHEELS[tool])
    path = _executable(wheel, tool) if wheel is not None else None
    if wheel is None or path is None:
        raise ToolsMissing(f"no {tool}: {missing()}")
    return Tool(path, version(wheel))


def cuda_data_directory() -> Path:
    """The folder XLA is pointed to, so that it assembles with the same ptxas (and finds libdevice beside it)."""
    return find("ptxas").path.parent.parent


def plugin_module() -> str:
    """Name of the module that registers XLA's CUDA compiler with jax."""
    wheel = _installed(_WHEELS["plugin"])
    if wheel is None:
        raise ToolsMissing(str(missing()))
    return f"jax_plugins.xla_{wheel.split('-')[1]}"


def versions() -> dict[str, str]:
    """Versions of everything that a compiled artefact depends on, by name."""
    plugin = _installed(_WHEELS["plugin"])
    names = ["jax", "jaxlib", *([plugin] if plugin else [])]
    return {name: version(name) for name in names} | {tool: find(tool).version for tool in PINNED}


@cache
def _installed(wheels: tuple[str, ...]) -> str | None:
    for wheel in wheels:
        try:
            distribution(wheel)
        except PackageNotFoundError:
            continue
        return wheel
    return None


@cache
def _executable(wheel: str, tool: str) -> Path | None:
    for file in distribution(wheel).files or ():
        if file.name == tool and file.parent.name == "bin":
            return Path(str(file.locate())).resolve()
    return None
