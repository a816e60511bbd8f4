"""What tiles cost by the static figures of the compiled kernel, where there is no GPU: a model's milliseconds.

    cost = max(issue time or tensor time, time of the bytes that are issued at the full bandwidth)

It knows nothing of latencies, so it ranks; it does not choose. Tiles that spill registers are refused.
"""

import re
from collections.abc import Callable

from bench import ops
from bench.figures import ProgramFigures, figures
from bench.inspect import memory_us
from bench.inspect.targets import find_target
from bench.ops import Spec
from bench.programs import MODES
from pallas_kernels import use_tiles
from pallas_kernels._tiles import AnyTiles


def cost(
    spec: Spec, kernel: str, target: str, tiles: AnyTiles, compiled: Callable[..., ProgramFigures] = figures
) -> float:
    """Milliseconds of one launch of a kernel, by the model.

    Raises:
        ValueError: the kernel refuses the tiles, spills registers with them, or walks so that nothing is known.
    """
    mode = MODES[0] if kernel == ops.of(spec).KERNELS[0] else MODES[1]
    with use_tiles(**{kernel: tiles}):
        program = compiled(spec, mode, "triton", target, detailed=True)
    one = next(found for found in program.kernels if re.fullmatch(rf"{kernel}(__\d+)?", found.name))  # XLA numbers them
    if one.spill_bytes:
        raise ValueError(f"{one.spill_bytes} bytes of registers are spilled")
    if one.products is not None:
        times = (one.products.tensor_us, memory_us(one.products.bytes_issued, find_target(target)))
    elif one.work is not None:
        times = (one.work.issue_us, memory_us(one.work.bytes_issued, find_target(target)))
    else:
        raise ValueError("values decide what the kernel does")
    return max(times) / 1e3
