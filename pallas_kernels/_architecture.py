"""The GPU that programs are made for, as the tile heuristics see it."""

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
