"""Safetensors files, written so that what was there stays until the new file is whole."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file


def pending(path: Path) -> Path:
    """Where the new contents of `path` wait for `os.replace`."""
    return path.with_name(path.name + ".tmp")


def write_pending(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write tensors to `pending(path)`, down to the disk.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    new = pending(path)
    try:
        # NumPy arrays in row-major order: of others safetensors would write the memory as it lies.
        save_file({name: np.ascontiguousarray(a).reshape(a.shape) for name, a in tensors.items()}, new, dict(metadata))
        flush(new)
    except BaseException as error:
        new.unlink(missing_ok=True)
        if isinstance(error, SafetensorError):  # what a full disk looks like from there
            raise OSError(f"cannot write {new}: {error}") from error
        raise


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors by name, and the metadata.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path} ({size} bytes) is not a whole safetensors file: {error}; copy or save it again"
        ) from error


def flush(path: Path) -> None:
    """Put what was written to a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
