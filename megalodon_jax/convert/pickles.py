"""Pickles of `torch.save`, from people one trusts: torch's restricted reader, and only where it has no known holes."""

import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

from megalodon_jax.convert.loading import InMemory

_SAFE_TORCH = (2, 10)  # before: CVE-2025-32434 and CVE-2026-24747, code execution in spite of weights_only
_WRAPPERS = ("state_dict", "model")


def require_safe_torch() -> None:
    """Import torch.

    Raises:
        ImportError: it is not installed.
        RuntimeError: a version whose restricted reader runs code.
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError('pickles need torch; pip install "megalodon-pallas[torch]"') from error
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version is None or tuple(map(int, version.groups())) < _SAFE_TORCH:
        safe = ".".join(map(str, _SAFE_TORCH))
        raise RuntimeError(
            f"torch {torch.__version__} runs code that a pickle brings along, in spite of weights_only "
            f"(CVE-2025-32434, CVE-2026-24747); install torch {safe} or later, or use safetensors"
        )


def open_pickle(path: str | os.PathLike) -> InMemory:
    """The state dict in a file of `torch.save`, alone or under "state_dict" or "model".

    Raises:
        ImportError, RuntimeError: as in `require_safe_torch`.
        ValueError: a damaged file, one of torch before 1.6, one that holds more than tensors, or other tensors than
            weights.
    """
    require_safe_torch()
    import torch

    path = Path(path)
    _require_whole(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever the damage happens to hit, and advises to read it all the same
        reason = re.search(r"WeightsUnpickler error: (.*)", str(error))
        raise ValueError(
            f"{path} is no pickle of tensors that torch.load reads with weights_only"
            + (f": {reason[1].strip()}" if reason else "")
        ) from error
    for _ in _WRAPPERS:  # not as long as there are any: a pickle can hold itself
        inner = [found[key] for key in _WRAPPERS if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)]
        found = inner[0] if inner else found
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{path} holds no state dict: expected tensors by name")
    for key, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{path} holds no state dict: {key} is a {type(value).__name__}, expected a tensor")
    try:
        return InMemory(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _require_whole(path: Path) -> None:
    """Compare every record with its checksum: torch does not."""
    try:
        damaged = None
        if whole := zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()
    except Exception as error:  # of zipfile, zlib, lzma and others: whatever the damage happens to hit
        raise ValueError(f"{path} is damaged: {error}; copy or save it again") from error
    if not whole:
        raise ValueError(
            f"{path} is no pickle of tensors that torch.save has written since 1.6, or is damaged: it is no zip file"
        )
    if damaged is not None:
        raise ValueError(f"{path} is damaged: {damaged} in it is not what was written; copy or save it again")
