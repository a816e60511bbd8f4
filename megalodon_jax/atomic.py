"""Files and folders that are there when all of them is: written beside, down to the disk, then renamed.

Until then they have a name that nobody else has, and are opened so that nothing that is there is written to, no link
followed. An error removes them; a kill leaves a `.tmp` behind, which is in nobody's way.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which replaces the one at `path` in one step at the end of the block.

    Raises:
        OSError: it cannot be written, or `path` is a folder; what was there stays.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file in it")
    new = _beside(path)
    file = new.open("xb")
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    flush(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write files to, which is `path` from the end of the block on; what an error leaves is removed.

    Raises:
        FileExistsError: as in `require_new`.
    """
    require_new(path)
    new = _beside(path)
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        new.mkdir(parents=True)
        yield new
        require_new(path)
        os.replace(new, path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise
    flush(path.parent)


def require_new(path: Path) -> None:
    """FileExistsError if there is something at `path`."""
    if os.path.lexists(path):
        raise FileExistsError(f"{path} is there already; give a new folder")


def write_text(path: Path, text: str) -> None:
    """Write a file that is not there yet, down to the disk."""
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def leftovers(path: Path) -> list[Path]:
    """What kills have left of files that were to replace the one at `path`."""
    return list(path.parent.glob(f"{path.name}.*.tmp"))


def flush(path: Path) -> None:
    """Put what was written to a folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
