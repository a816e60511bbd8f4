"""One stretch of tokens in three: training, validation and test part, in this order.

literature   90 M, 5 M and 5 M of the first 100 M (enwik8 in the literature)
seed_95m     85.5 M and 9.5 M of the first 95 M, no test part
[a, b, c]    fractions of all there is, which sum to 1
auto         literature for 100,000,000 tokens, else 90 %, 5 % and 5 %
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt

_FIXED = {"literature": (90_000_000, 5_000_000, 5_000_000), "seed_95m": (85_500_000, 9_500_000, 0)}
_FRACTIONS = (0.9, 0.05, 0.05)
_ENWIK8 = 100_000_000


class Parts(NamedTuple):
    """Views of the parts of a text."""

    train: UInt[np.ndarray, " T"]
    validation: UInt[np.ndarray, " V"]
    test: UInt[np.ndarray, " S"]


def split(tokens: UInt[np.ndarray, " N"], rule: str | Sequence[float], least: int = 1) -> Parts:
    """The parts.

    Args:
        tokens: the whole text.
        rule: one of the names above, or three fractions.
        least: tokens that the training and the validation part need at least.

    Raises:
        ValueError: fewer tokens than the rule or `least` needs, or fractions that do not sum to 1.
    """
    count = len(tokens)
    if rule == "auto":
        rule = "literature" if count == _ENWIK8 else _FRACTIONS
    sizes = _fixed(rule, count) if isinstance(rule, str) else _fractions(rule, count)
    train, validation, _ = sizes
    if min(train, validation) < least:
        raise ValueError(
            f"{count} tokens split into {train}, {validation} and {sizes[2]} for training, validation and test; "
            f"training and validation need {least} at least: give a longer file, other fractions in data.split, or a "
            "smaller data.sequence_length"
        )
    ends = np.cumsum(sizes)
    return Parts(tokens[: ends[0]], tokens[ends[0] : ends[1]], tokens[ends[1] : ends[2]])


def _fixed(rule: str, count: int) -> tuple[int, int, int]:
    sizes = _FIXED[rule]
    if count < sum(sizes):
        raise ValueError(
            f"data.split {rule} needs {sum(sizes):,} tokens, the file holds {count:,}; "
            "give the whole file, or fractions such as data.split=[0.9,0.05,0.05]"
        )
    return sizes


def _fractions(rule: Sequence[float], count: int) -> tuple[int, int, int]:
    if abs(sum(rule) - 1) > 1e-6:
        raise ValueError(f"the fractions of data.split must sum to 1, got {list(rule)}")
    train, validation = (int(count * part + 1e-6) for part in rule[:2])
    return train, validation, count - train - validation if rule[2] else 0
