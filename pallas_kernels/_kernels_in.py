"""Which Pallas kernels a program holds, so that a test can assert which path runs."""

import re

_KERNEL = re.compile(r'name = "(\w+)", num_stages = \d+')  # in the configuration of Triton's custom call


def kernels_in(program) -> tuple[str, ...]:
    """Names of the Pallas kernels in a program, in the order of its text, one for every launch site.

    Args:
        program: what `jax.jit(f).lower(...)` returned, or its `.compile()`.

    Raises:
        TypeError: neither.
    """
    if not hasattr(program, "as_text"):
        raise TypeError(f"kernels_in: expected a lowered or compiled program, got {type(program).__name__}.")
    return tuple(_KERNEL.findall(program.as_text()))
