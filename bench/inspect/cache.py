"""Compiled artefacts on disk, found again by what went into them.

The key is a hash of the lowered program (the IR of its kernels included), the target, the options, the versions of
everything that compiles and the source of the code here that drives them. An entry is compressed JSON, written to a
temporary file and renamed, and holds nothing that could run. An entry that cannot be read in full is as good as none.
"""

import gzip
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from functools import cache as remembered
from pathlib import Path

from bench.inspect.artefacts import Artefacts
from pallas_kernels._tuning import user_cache_directory

VARIABLE = "MEGALODON_INSPECT_CACHE"

# Modules that decide what an entry holds; those that only read entries may change without losing them.
_SOURCES = ("artefacts", "cache", "compile", "hlo", "hlo_text", "sass", "targets", "tools")


def directory() -> Path:
    """Where entries are kept: $MEGALODON_INSPECT_CACHE, or a folder of the user's cache directory."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    return user_cache_directory() / "inspect"


def key(program: str, target_config: str, options: Mapping[str, object], versions: Mapping[str, str]) -> str:
    """Hash of everything a compilation depends on."""
    parts = {
        "program": program,
        "target": target_config,
        "options": {name: repr(value) for name, value in options.items()},
        "versions": dict(versions),
        "source": _source(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load(name: str) -> Artefacts | None:
    """The entry of a key; None if there is none or it cannot be trusted."""
    try:
        return read(_path(name))
    except (OSError, ValueError):
        return None


def store(name: str, artefacts: Artefacts) -> None:
    """Write an entry; readers see the old one or the new one, never a part."""
    path = _path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{name[:8]}_")
    os.close(descriptor)
    try:
        write(Path(temporary), artefacts)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write(path: Path, artefacts: Artefacts) -> None:
    """Write artefacts to a file."""
    path.write_bytes(gzip.compress(json.dumps(artefacts.to_plain()).encode(), mtime=0))


def read(path: Path) -> Artefacts:
    """Artefacts from a file.

    Raises:
        OSError: no such file.
        ValueError: not a whole file written by `write`.
    """
    try:
        return Artefacts.from_plain(json.loads(gzip.decompress(path.read_bytes())))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _path(name: str) -> Path:
    return directory() / f"{name}.json.gz"


@remembered
def _source() -> str:
    digest = hashlib.sha256()
    for module in _SOURCES:
        digest.update((Path(__file__).parent / f"{module}.py").read_bytes())
    return digest.hexdigest()
