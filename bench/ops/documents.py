"""Random packed documents."""

import numpy as np


def documents(r: np.random.Generator, batch: int, length: int) -> np.ndarray:
    """Documents of odd lengths, with padding (0) inside, in front or behind, and an id that comes back.

    In the first row one begins at token 64, where a chunk of the kernels does.
    """
    ids = np.zeros((batch, length), np.int32)
    for row in range(batch):
        cuts = np.sort(r.choice(np.arange(1, length), size=min(length - 1, 6), replace=False))
        if row == 0 and length > 64:
            cuts = np.union1d(cuts[:-1], [64])
        for index, piece in enumerate(np.split(np.arange(length), cuts)):
            ids[row, piece] = (1, 2, 0, 2, 3, 1)[(index + row) % 6]
    return ids
