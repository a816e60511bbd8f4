"""How many blocks of a kernel fit on one multiprocessor at once, and what limits them.

A multiprocessor has four partitions. A warp takes its registers from one of them, in units of 256; a block takes its
shared memory, the driver's share included, in units of 128 bytes:

    warps  = 4 * floor(registers / 4 / roundup(32 * registers per thread, 256))
    blocks = min(warps // warps per block, shared // roundup(shared per block + reserved, 128), threads, block slots)
"""

from dataclasses import dataclass

from bench.inspect.targets import Target

_PARTITIONS = 4
_WARP = 32
_REGISTER_UNIT = 256
_SHARED_UNIT = 128


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps resident on one multiprocessor; `fraction` is of the warps it could hold."""

    blocks: int
    warps: int
    fraction: float
    limiter: str  # "registers", "shared memory", "threads" or "blocks"


def occupancy(target: Target, *, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Residency of a kernel with `threads` per block, `registers` per thread and `shared_bytes` per block.

    Raises:
        ValueError: a count that no kernel can have.
    """
    if not 1 <= threads <= 1024 or not 1 <= registers <= 255 or shared_bytes < 0:
        raise ValueError(
            "a kernel has 1 to 1024 threads per block, 1 to 255 registers per thread and no negative shared memory; "
            f"got threads={threads}, registers={registers}, shared_bytes={shared_bytes}."
        )
    warps_per_block = -(-threads // _WARP)
    per_warp = _round_up(registers * _WARP, _REGISTER_UNIT)
    warps = _PARTITIONS * (target.registers_per_multiprocessor // _PARTITIONS // per_warp)
    limits = {
        "registers": warps // warps_per_block,
        "shared memory": target.shared_per_multiprocessor
        // _round_up(shared_bytes + target.shared_reserved, _SHARED_UNIT),
        "threads": target.threads_per_multiprocessor // (warps_per_block * _WARP),
        "blocks": target.blocks_per_multiprocessor,
    }
    blocks = min(limits.values())
    # Of equal limits, the one that no change of the kernel's resources moves is named.
    limiter = next(name for name in ("blocks", "threads", "shared memory", "registers") if limits[name] == blocks)
    resident = blocks * warps_per_block
    return Occupancy(blocks, resident, resident * _WARP / target.threads_per_multiprocessor, limiter)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
