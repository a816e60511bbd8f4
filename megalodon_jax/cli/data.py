"""Bytes to train on: a corpus, its split, random windows for training and fixed windows for evaluation.

    corpus = | training part ................................ | held out (about 5 %) |

The default corpus is text that every Python installation carries: the help topics of `pydoc_data` and the sources of
the standard library. Its documents are put in an order drawn once from a fixed seed before they are joined, so the tail
that is held out is made of documents of the same kinds as the training part, none of which was trained on but for the
one that the cut falls into. The held-out part of a file given with `--data` is its tail.
"""

import gzip
import importlib
import random
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from megalodon_jax.cli.errors import CommandError

MAX_DEFAULT_BYTES = 8_000_000
HELD_OUT_FRACTION = 0.05
MAX_HELD_OUT_BYTES = 65_536  # evaluation takes about a second on two CPU cores
MAX_DOCUMENT_BYTES = 16_384  # of the default corpus: one long file must not be the whole held-out part
MIN_WINDOWS = 4

# Tests are not prose; `encodings` is tables of characters; the last one holds paths of the machine Python was built on.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "__pycache__"}
_SKIPPED_PREFIX = "_sysconfigdata"


@dataclass(frozen=True)
class Corpus:
    """Training and held-out bytes; `source` says where they come from."""

    train: UInt8[np.ndarray, " T"]
    held_out: UInt8[np.ndarray, " H"]
    source: str


def load_corpus(path: Path | None, sequence_length: int) -> Corpus:
    """Read a file (plain or .gz), or the default corpus for None, and split it.

    Args:
        path: the file.
        sequence_length: L, bytes per window. The held-out part is a whole number of windows that overlap by one byte,
            so that every held-out byte but the first is predicted exactly once.

    Raises:
        CommandError: missing, unreadable or too short; a folder; a .gz file that does not decompress.
    """
    text, source = default_text() if path is None else (_read(path), str(path))
    minimum = MIN_WINDOWS * sequence_length
    if len(text) < minimum:
        raise CommandError(
            f"{source} holds {len(text)} bytes, at least {minimum} are needed "
            f"({MIN_WINDOWS} windows of {sequence_length}); give a longer file, or a smaller sequence length"
        )
    windows = min(int(len(text) * HELD_OUT_FRACTION), MAX_HELD_OUT_BYTES) // (sequence_length - 1)
    held_out = max(windows, 1) * (sequence_length - 1) + 1
    data = np.frombuffer(text, np.uint8)
    return Corpus(data[:-held_out], data[-held_out:], source)


def training_batches(
    data: UInt8[np.ndarray, " T"], batch_size: int, sequence_length: int, seed: int
) -> Iterator[Int32[np.ndarray, "B L"]]:
    """Endless batches of windows that start at random places; bytes, so every id is in [0, 256)."""
    generator = np.random.default_rng(seed)
    offsets = np.arange(sequence_length)
    while True:
        starts = generator.integers(0, len(data) - sequence_length, size=(batch_size, 1), endpoint=True)
        yield data[starts + offsets].astype(np.int32)


def evaluation_windows(data: UInt8[np.ndarray, " H"], sequence_length: int) -> Int32[np.ndarray, "W L"]:
    """The held-out bytes as windows that overlap by one byte."""
    starts = np.arange(0, len(data) - 1, sequence_length - 1)[:, None]
    return data[starts + np.arange(sequence_length)].astype(np.int32)


def default_text() -> tuple[bytes, str]:
    """At most 8 MB of text that comes with Python, always the same on the same installation; and its description."""
    documents = [text[:MAX_DOCUMENT_BYTES] for _, text in sorted(_topics() | _standard_library())]
    random.Random(0).shuffle(documents)
    return b"\n".join(documents)[:MAX_DEFAULT_BYTES], "Python's help topics and standard library sources"


def _topics() -> set[tuple[str, bytes]]:
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return set()
    return {(f"topic/{name}", text.encode()) for name, text in topics.items()}


def _standard_library() -> set[tuple[str, bytes]]:
    root = Path(sysconfig.get_path("stdlib"))
    sources = set()
    for file in root.rglob("*.py"):
        relative = file.relative_to(root)
        if _SKIPPED_FOLDERS.isdisjoint(relative.parts) and not file.name.startswith(_SKIPPED_PREFIX):
            try:
                sources.add((relative.as_posix(), file.read_bytes()))
            except OSError:
                continue  # one unreadable file does not stop a demo
    return sources


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except IsADirectoryError as error:
        raise CommandError(f"--data {path} is a folder; give one file, plain or .gz") from error
    except OSError as error:
        raise CommandError(f"--data {path} cannot be read ({error.strerror}); give one file, plain or .gz") from error
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise CommandError(
            f"--data {path} ({len(content)} bytes) ends in .gz but does not decompress ({error}); "
            "download it again, or rename it if it is plain text"
        ) from error
