"""What simple models of the same bytes reach, in bits per byte."""

import bz2
import gzip

import numpy as np
from jaxtyping import UInt8


def unigram_entropy(data: UInt8[np.ndarray, " N"]) -> float:
    """Entropy of the byte frequencies of `data`: the best any model can do that ignores context."""
    counts = np.bincount(data, minlength=256)
    frequencies = counts[counts > 0] / len(data)
    return float(-np.sum(frequencies * np.log2(frequencies)))


def baselines(data: UInt8[np.ndarray, " N"]) -> dict[str, float]:
    """Bits per byte of `data` alone under its unigram entropy, gzip -9 and bzip2 -9."""
    text = data.tobytes()
    return {
        "unigram entropy": unigram_entropy(data),
        "gzip": 8 * len(gzip.compress(text, 9)) / len(text),
        "bzip2": 8 * len(bz2.compress(text, 9)) / len(text),
    }
