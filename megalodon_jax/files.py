"""Safetensors files, read and written tensor by tensor; what was there stays until the new file is whole.

Reading is the safetensors library's. It writes only what lies in memory as a whole, so writing is done here: the format
is eight bytes of header length, a JSON header, and the tensors' bytes one after the other. Among the metadata of the
header we keep the SHA-256 of the whole file as it is with zeros in that place; a file that has it is compared with it.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from megalodon_jax.atomic import replacing
from megalodon_jax.json_files import unique

_NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64",
}  # fmt: skip
_DTYPES = {short: name for name, short in _NAMES.items()}

_DIGEST = "megalodon_jax_sha256"
_EMPTY = b"0" * 64
_BLOCK = 1 << 20

Signature = tuple[tuple[int, ...], str]  # shape and dtype of a tensor


@dataclass(frozen=True)
class Pending:
    """A tensor that is made when its turn to be written comes."""

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]


def write(path: Path, tensors: Mapping[str, np.ndarray | jax.Array | Pending], metadata: Mapping[str, str]) -> None:
    """Write a file that replaces the one at `path` in one step; of tensors that are made, one is held at a time.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    with replacing(path) as file:
        header = _header(tensors, {**metadata, _DIGEST: _EMPTY.decode()})
        digest = hashlib.sha256(header)
        file.write(header)
        for tensor in tensors.values():
            _append(tensor, file, digest)
        file.seek(header.index(_EMPTY))
        file.write(digest.hexdigest().encode())


def _append(tensor: np.ndarray | jax.Array | Pending, file: BinaryIO, digest: "hashlib._Hash") -> None:
    value = np.asarray(tensor.make() if isinstance(tensor, Pending) else tensor)
    data = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
    digest.update(data)
    file.write(data)


def _header(tensors: Mapping[str, np.ndarray | jax.Array | Pending], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        dtype = jnp.dtype(tensor.dtype)
        start, end = end, end + int(np.prod(tensor.shape)) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype.name], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class TensorFile:
    """A safetensors file, open for reading; only the header is read before a tensor is asked for.

    Attributes:
        signatures: shape and dtype of each tensor, by name.
        metadata: the strings beside them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole safetensors file, or not the bytes that were written.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        self.path = path
        with path.open("rb") as file, self._whole():
            self._file = safe_open(path, framework="np")
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                raise ValueError(f"{path} was replaced while it was opened; load it again")
            self.metadata: dict[str, str] = self._file.metadata() or {}
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
            self.signatures: dict[str, Signature] = {
                name: (tuple(one.get_shape()), _DTYPES.get(str(one.get_dtype()), str(one.get_dtype())))
                for name, one in slices.items()
            }
            written = self.metadata.pop(_DIGEST, "")
            digest = _checked_header(path, file, written)
        if written and written != digest:
            raise ValueError(f"{path} is damaged: its bytes are not those that were written; copy or save it again")

    def read(self, name: str) -> np.ndarray:
        """One tensor."""
        with self._whole():
            return self._file.get_tensor(name)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except (SafetensorError, OSError) as error:
            size = self.path.stat().st_size
            raise ValueError(
                f"{self.path} ({size} bytes) is not a whole safetensors file: {error}; copy or save it again"
            ) from error


def _checked_header(path: Path, file: BinaryIO, written: str) -> str:
    """The digest of a file in whose header every name is there once; empty if none was written."""
    size = file.read(8)
    header = file.read(struct.unpack("<Q", size)[0])
    try:
        json.loads(header, object_pairs_hook=unique)
    except ValueError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}; copy or save it again") from error
    if not written:
        return ""
    digest = hashlib.sha256(size + header.replace(written.encode(), _EMPTY, 1))
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()
