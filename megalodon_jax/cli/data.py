"""What the demo reads: a text and the end of it, about 5 %, which is held out.

corpus = | training part ................................ | held out |
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from megalodon_jax.cli.errors import CommandError, bad_input
from megalodon_jax.training.sources import describe, read_tokens

HELD_OUT_FRACTION = 0.05
MAX_HELD_OUT_BYTES = 65_536  # evaluation takes about a second on two CPU cores
MIN_WINDOWS = 4


@dataclass(frozen=True)
class Corpus:
    """Training and held-out bytes; `source` says where they come from."""

    train: UInt8[np.ndarray, " T"]
    held_out: UInt8[np.ndarray, " H"]
    source: str


def load_corpus(path: Path | None, sequence_length: int) -> Corpus:
    """Read a file (plain or .gz), or for None text that comes with Python, and split it.

    Args:
        path: the file.
        sequence_length: bytes per window; the held-out part has one byte more than a whole number of windows.

    Raises:
        CommandError: missing, unreadable or too short; a folder; a .gz file that does not decompress.
    """
    with bad_input():
        data, source = read_tokens(path), describe(path)
    minimum = MIN_WINDOWS * sequence_length
    if len(data) < minimum:
        raise CommandError(
            f"{source} holds {len(data)} bytes, at least {minimum} are needed "
            f"({MIN_WINDOWS} windows of {sequence_length}); give a longer file"
        )
    windows = min(int(len(data) * HELD_OUT_FRACTION), MAX_HELD_OUT_BYTES) // sequence_length
    held_out = max(windows, 1) * sequence_length + 1
    return Corpus(data[:-held_out], data[-held_out:], source)
