"""Windows of T+1 tokens: random ones to train on, a pure function of seed and step; fixed ones to evaluate on."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int, Int32, UInt

from megalodon_jax.training.packing import IGNORED, segments


class Batch(NamedTuple):
    """Rows of T tokens; targets[t] is what follows inputs[t], or `IGNORED`. `segment_ids`: None for one long text.

    The arrays have the same leading axes, [accumulate, batch] or [windows]; int32, on the host or on a device.
    """

    inputs: Int32[np.ndarray | jax.Array, "*batch T"]
    targets: Int32[np.ndarray | jax.Array, "*batch T"]
    segment_ids: Int32[np.ndarray | jax.Array, "*batch T"] | None


def training_batch(
    tokens: UInt[np.ndarray, " N"],
    seed: int,
    step: int,
    shape: tuple[int, int],
    length: int,
    separator: int | None = None,
    rows: Int[np.ndarray, " rows"] | None = None,
) -> Batch:
    """The batch of a step: windows that start anywhere, with replacement. There is no sampler state to save.

    Args:
        tokens: the training part.
        seed, step: decide, alone, which windows.
        shape: (accumulate, batch).
        length: T.
        separator: the token that ends a document.
        rows: which rows of every micro-batch, the only ones that are read; None: all.
    """
    generator = np.random.default_rng((seed, step))
    starts = generator.integers(0, len(tokens) - length - 1, size=shape, endpoint=True)
    starts = starts if rows is None else starts[:, rows]
    return _batch(_windows(tokens, starts, length), separator)


def fixed_windows(
    tokens: UInt[np.ndarray, " N"], length: int, count: int | None, separator: int | None = None
) -> Batch:
    """`count` windows of the consecutive ones that cover `tokens`, evenly spaced, or all of them for None, [W, T].

    All of them predict every token but the first exactly once.
    """
    starts = np.arange(0, len(tokens) - 1, length)
    if count is not None and count < len(starts):
        starts = starts[np.arange(count) * len(starts) // count]
    return _batch(_windows(tokens, starts, length), separator)


def sliding_windows(tokens: UInt[np.ndarray, " N"], length: int) -> Batch:
    """Windows that overlap by half, of which the second half is predicted (of the first one all), [W, T].

    Every token but the first is predicted exactly once, with half a window before it at least.
    """
    stride = max(length // 2, 1)
    starts = np.arange(0, max(len(tokens) - 1 - (length - stride), 1), stride)
    batch = _batch(_windows(tokens, starts, length), None)
    seen = (np.arange(length) < length - stride) & (starts > 0)[:, None]
    return batch._replace(targets=np.where(seen, IGNORED, batch.targets).astype(np.int32))


def _windows(tokens: np.ndarray, starts: np.ndarray, length: int) -> Int32[np.ndarray, "*batch W"]:
    """Windows of length + 1 tokens; what is beyond the end is `IGNORED`."""
    windows = np.full((starts.size, length + 1), IGNORED, np.int32)
    for row, start in zip(windows, starts.ravel(), strict=True):
        piece = tokens[start : start + length + 1]
        row[: len(piece)] = piece
    return windows.reshape(*starts.shape, length + 1)


def _batch(windows: Int32[np.ndarray, "*batch W"], separator: int | None) -> Batch:
    there = windows != IGNORED
    targets, segment_ids = windows[..., 1:], None
    if separator is not None:
        segment_ids, targets = segments(windows, separator)
        segment_ids = np.where(there[..., :-1], segment_ids, 0).astype(np.int32)
        targets = np.where(there[..., 1:], targets, IGNORED).astype(np.int32)
    inputs = np.where(there, windows, 0)[..., :-1].astype(np.int32)
    return Batch(inputs, np.ascontiguousarray(targets), segment_ids)
