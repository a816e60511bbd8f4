"""Documents in a window: where they end, which token belongs to which, which target starts another one.

tokens    a b . c d e . f      (separator ".", the last token of its document)
inputs    a b . c d e .
targets   b . _ d e . _        (_: not predicted, another document)
segments  1 1 1 2 2 2 2
"""

import numpy as np
from jaxtyping import Int32

IGNORED = -100  # a target that does not count


def segments(
    windows: Int32[np.ndarray, "*batch W"], separator: int
) -> tuple[Int32[np.ndarray, "*batch T"], Int32[np.ndarray, "*batch T"]]:
    """Segment ids of the inputs of windows of T+1 tokens, from 1 on, and the targets, `IGNORED` after a separator."""
    inputs = windows[..., :-1]
    ends = inputs == separator
    before = np.cumsum(ends, axis=-1) - ends
    return (before + 1).astype(np.int32), np.where(ends, IGNORED, windows[..., 1:]).astype(np.int32)
