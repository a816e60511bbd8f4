"""Text that every Python installation carries: help topics of `pydoc_data`, sources of the standard library.

The documents are put in an order drawn once from a fixed seed before they are joined, so the tail of it, which is held
out, is made of documents of the same kinds as the training part, none of which was trained on but for the one that the
cut falls into.
"""

import importlib
import random
import sysconfig
from pathlib import Path

MAX_BYTES = 8_000_000
MAX_DOCUMENT_BYTES = 16_384  # one long file must not be the whole held-out part
DESCRIPTION = "Python's help topics and standard library sources"

# Tests are not prose; `encodings` is tables of characters; the last one holds paths of the machine Python was built on.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "__pycache__"}
_SKIPPED_PREFIX = "_sysconfigdata"


def python_text() -> bytes:
    """At most 8 MB, always the same on the same installation."""
    documents = [text[:MAX_DOCUMENT_BYTES] for _, text in sorted(_topics() | _standard_library())]
    random.Random(0).shuffle(documents)
    return b"\n".join(documents)[:MAX_BYTES]


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
