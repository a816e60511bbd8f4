"""Tokens in files: bytes, plain or .gz, and ids of two or four bytes. Plain files are mapped, never read as a whole."""

import gzip
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt

from megalodon_jax.training.python_text import DESCRIPTION, python_text

_BLOCK = 2**24  # tokens
DTYPES = {"bytes": np.dtype(np.uint8), "uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def read_tokens(path: str | Path | None, tokens: str = "bytes") -> UInt[np.ndarray, " N"]:
    """All tokens of a file.

    Args:
        path: the file, decompressed to memory if its name ends in .gz; None: text that comes with Python.
        tokens: a key of `DTYPES`.

    Raises:
        ValueError: the file is empty, does not decompress, or is no whole number of tokens.
        OSError: it cannot be read.
    """
    dtype = DTYPES[tokens]
    if path is None:
        if tokens != "bytes":
            raise ValueError(f"the text that comes with Python is bytes, not {tokens}; give data.path")
        return np.frombuffer(python_text(), np.uint8)
    path = Path(path)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give one file, plain or .gz")
        content = np.frombuffer(_decompressed(path), np.uint8) if path.suffix == ".gz" else _mapped(path, size)
    except OSError as error:
        raise OSError(f"{path} cannot be read ({error.strerror}); give one file, plain or .gz") from error
    if content.size == 0 or content.size % dtype.itemsize:
        raise ValueError(
            f"{path} holds {content.size} bytes; at least one token is needed, and {dtype.itemsize} bytes for each "
            f"({tokens})"
        )
    return content.view(dtype)


def largest_token(tokens: UInt[np.ndarray, " N"]) -> int:
    """Of all, read block by block; 0 if there is none."""
    return max((int(tokens[start : start + _BLOCK].max()) for start in range(0, len(tokens), _BLOCK)), default=0)


def describe(path: str | Path | None) -> str:
    """What a person calls the source."""
    return DESCRIPTION if path is None else str(path)


def _mapped(path: Path, size: int) -> np.ndarray:
    return np.memmap(path, np.uint8, mode="r") if size else np.empty(0, np.uint8)


def _decompressed(path: Path) -> bytes:
    content = path.read_bytes()
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} ({len(content)} bytes) ends in .gz but does not decompress ({error}); "
            "download it again, or rename it if it is plain text"
        ) from error
