"""What a kernel is launched with: the architecture it is for, its tile shape, and the plan made once at op entry."""

import re
from dataclasses import dataclass

import jax

from pallas_kernels._settings import TARGETS, Settings


@dataclass(frozen=True)
class Architecture:
    """A GPU as the tile heuristics see it: `name` one of the targets of `compile_for`."""

    name: str
    multiprocessors: int
    device_kind: str  # as jax names it

    @staticmethod
    def of(target: str) -> "Architecture":
        """The architecture of a target name."""
        return _ARCHITECTURES[target]


_ARCHITECTURES = {
    name: Architecture(name, multiprocessors, kind)
    for name, multiprocessors, kind in (
        ("sm_80", 108, "NVIDIA A100"),
        ("sm_89", 128, "NVIDIA GeForce RTX 4090"),
        ("sm_90", 132, "NVIDIA H100"),
        ("sm_100", 148, "NVIDIA B200"),
        ("sm_120", 170, "NVIDIA RTX PRO 6000"),  # jax 0.12 has no name for the RTX 5090 of the same architecture
    )
}
assert tuple(_ARCHITECTURES) == TARGETS


def architecture(settings: Settings) -> Architecture | str:
    """The GPU that programs are made for: by `compile_for`, else the one at hand; or the reason why there is none."""
    if settings.target is not None:
        return Architecture.of(settings.target)
    if jax.default_backend() != "gpu":
        return f'this process runs on {jax.default_backend()}; compile_for("sm_90") builds for a GPU that is not here'
    device = jax.devices()[0]
    capability = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(device, "compute_capability", "")))
    if capability is None:
        return f"{device.device_kind} is not an NVIDIA GPU"
    number = 10 * int(capability[1]) + int(capability[2])
    known = [name for name in TARGETS if int(name.removeprefix("sm_")) <= number]
    if not known:
        return f"{device.device_kind} has compute capability {capability[0]}; 8.0 is the least"
    count = getattr(device, "core_count", None) or Architecture.of(known[-1]).multiprocessors
    return Architecture(known[-1], count, device.device_kind)


def next_power_of_two(number: int) -> int:
    """The least power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True)
class Tiles:
    """Launch shape of one kernel.

    Attributes:
        block_length: tokens per tile, a power of two.
        num_chunks: programs that share a sequence; 1 means one pass over it.
        num_warps: warps per program, a power of two.
    """

    block_length: int
    num_chunks: int
    num_warps: int

    def __post_init__(self):
        for field in ("block_length", "num_warps"):
            value = getattr(self, field)
            if type(value) is not int or value < 1 or value & (value - 1):
                raise ValueError(f"Tiles: {field} must be a power of two, got {value!r}.")
        if type(self.num_chunks) is not int or self.num_chunks < 1:
            raise ValueError(f"Tiles: num_chunks must be a positive int, got {self.num_chunks!r}.")
        if self.num_warps > 16:
            raise ValueError(f"Tiles: num_warps must be at most 16, got {self.num_warps}.")


@dataclass(frozen=True)
class Launch:
    """One kernel of an implementation: its tiles, and whether an override, the tuning cache or the heuristic chose."""

    kernel: str
    tiles: Tiles
    source: str

    def __str__(self) -> str:
        t = self.tiles
        counts = ((t.block_length, "token"), (t.num_chunks, "chunk"), (t.num_warps, "warp"))
        shape = ", ".join(f"{count} {what}{'s' * (count > 1)}" for count, what in counts)
        return f"{self.kernel}: {shape} ({self.source})"


@dataclass(frozen=True)
class Plan:
    """Everything decided at op entry; a static argument of the forward and of the backward alike.

    Attributes:
        interpret: run by Pallas' interpreter instead of being compiled.
        target: the architecture named by `compile_for`, None for the device at hand.
        portable: leave the last word to the platform the program is lowered for: kernel on CUDA, reference elsewhere.
        tiles: one entry per kernel of the op, by name.
    """

    interpret: bool
    target: str | None
    portable: bool
    tiles: tuple[tuple[str, Tiles], ...]

    def __getitem__(self, kernel: str) -> Tiles:
        return dict(self.tiles)[kernel]
