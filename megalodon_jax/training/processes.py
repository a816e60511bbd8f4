"""Several processes that make one run: the first one writes, all take the same steps in the same order."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Is this the process that writes and prints?"""
    return jax.process_index() == 0


def together(where: str) -> None:
    """Go on when all processes have come here; `where` is the same in all of them."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def largest(number: int) -> int:
    """The largest of the numbers that the processes ask with."""
    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number))))
