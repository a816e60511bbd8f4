"""JSON objects in files from anywhere."""

import json
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ValueError: not JSON, something else than an object, or a key twice; the message names the file.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(fields).__name__}")
    return fields


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, or ValueError if a key is in it twice (as `object_pairs_hook`)."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{max(names, key=names.count)} is in it twice")
    return found
