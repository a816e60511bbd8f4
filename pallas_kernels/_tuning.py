"""Where a kernel's tiles come from: an override, else the tuning cache, else the op's heuristic.

    with use_tiles(timestep_norm_forward=Tiles(block_length=128, num_chunks=1, num_warps=4)): ...

The tuning cache is one JSON file, `tuning.json` in PALLAS_KERNELS_CACHE_DIR (default: `megalodon-pallas` in the
user's cache directory), read once at import:

    {"version": 1, "entries": [{"kernel": "timestep_norm_forward", "target": "sm_90",
                                "shape": {"batch": 8, ...}, "tiles": {"block_length": 256, ...}}]}

An entry holds for exactly its shape. A file that cannot be read or does not make sense is reported by one warning in
the log of `pallas_kernels` and left out as a whole.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pallas_kernels import _settings
from pallas_kernels._tiles import KERNELS, AnyTiles, Launch

VERSION = 1
Shape = tuple[tuple[str, int | str], ...]
Entry = tuple[str, str, Shape, AnyTiles]

logger = logging.getLogger("pallas_kernels")


def user_cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of this package in the user's cache directory; a relative XDG_CACHE_HOME is ignored, as XDG says."""
    base = environment.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "megalodon-pallas"


def cache_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the tuning cache is."""
    directory = environment.get("PALLAS_KERNELS_CACHE_DIR")
    return (Path(directory) if directory else user_cache_directory(environment)) / "tuning.json"


def read_cache(file: Path) -> tuple[Entry, ...]:
    """Entries of a tuning cache; none if there is no such file.

    Raises:
        ValueError: the file is not what this version writes; the message says where.
    """
    try:
        text = file.read_text()
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a tuning cache: it cannot be read: {error}. Delete it.") from error
    try:
        data = json.loads(text)
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']!r}, this is version {VERSION}")
        return tuple(map(_entry, data["entries"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is not a tuning cache: {type(error).__name__}: {error}. Delete it.") from error


def _entry(entry: dict) -> Entry:
    kernel, target, shape = entry["kernel"], entry["target"], entry["shape"]
    if kernel not in KERNELS or target not in _settings.TARGETS:
        raise ValueError(f"unknown kernel or target: {kernel!r}, {target!r}")
    if not all(type(value) in (int, str) for value in shape.values()):
        raise ValueError(f"sizes must be numbers or names, got {shape!r}")
    return kernel, target, tuple(sorted(shape.items())), KERNELS[kernel](**entry["tiles"])


def write_cache(file: Path, entries: tuple[Entry, ...]) -> None:
    """Write a tuning cache, whole or not at all."""
    data = {
        "version": VERSION,
        "entries": [
            {"kernel": kernel, "target": target, "shape": dict(shape), "tiles": asdict(tiles)}
            for kernel, target, shape, tiles in entries
        ],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(data, indent=1))
    part.replace(file)


def load_cache() -> None:
    """Put the tuning cache into the settings; called once at import."""
    try:
        entries = read_cache(cache_file())
    except (ValueError, RuntimeError) as error:  # RuntimeError: no home directory
        logger.warning("ignoring the tuning cache: %s", error)
        return
    _settings.set_default(replace(_settings.current(), tuned=entries))


def choose(
    kernel: str, target: str, shape: Mapping[str, int | str], heuristic: AnyTiles, refuse: Callable[[Any], str | None]
) -> Launch:
    """One kernel with its tiles and where they came from; `refuse` says why the problem cannot do with some, or None.

    Raises:
        ValueError: an override that is refused; a tuning cache with such is passed over.
    """
    settings, key = _settings.current(), (kernel, target, tuple(sorted(shape.items())))
    for name, tiles in settings.tiles:
        if name == kernel:
            if reason := refuse(tiles):
                raise ValueError(f"{kernel}: {reason}.")
            return Launch(kernel, tiles, "override", *key[1:])
    for *entry, tiles in settings.tuned:
        if tuple(entry) == key and refuse(tiles) is None:
            return Launch(kernel, tiles, "tuning cache", *key[1:])
    return Launch(kernel, heuristic, "heuristic", *key[1:])


@contextmanager
def use_tiles(**kernels: AnyTiles) -> Iterator[None]:
    """Launch the named kernels with these tiles inside the block.

    Raises:
        ValueError: no kernel of that name.
        TypeError: not of the type that the kernel takes.
    """
    for kernel, tiles in kernels.items():
        if kernel not in KERNELS:
            raise ValueError(f"use_tiles: unknown kernel {kernel!r}; the kernels are {', '.join(KERNELS)}.")
        if not isinstance(tiles, KERNELS[kernel]):
            wanted, given = KERNELS[kernel].__name__, type(tiles).__name__
            raise TypeError(f"use_tiles: {kernel} must be of type {wanted}, got {given}.")
    settings = _settings.current()
    merged = tuple(sorted({**dict(settings.tiles), **kernels}.items()))
    with _settings.settings_context(replace(settings, tiles=merged)):
        yield
