"""What all suites of a run share: the device, its clock and roofline, and how it is measured."""

import secrets
from dataclasses import asdict, dataclass

from bench import environment
from bench.gpu import device as devices
from bench.gpu import roofline
from bench.gpu.clock import Clock, clock_of
from bench.gpu.device import Device
from bench.gpu.roofline import Roofline

FORMAT = 1
ROUNDS = 20


@dataclass(frozen=True)
class Session:
    """One run.

    Attributes:
        kernel: the implementation that stands for the kernels, None where they cannot run.
        seed: of the random inputs that are timed.
        parity_seed: of those compared with the oracle.
    """

    device: Device
    clock: Clock
    roofline: Roofline
    kernel: str | None
    rounds: int
    seed: int
    parity_seed: int

    def record(self, suite: str, cases: list[dict], parity: list[dict]) -> dict:
        """A finished suite as plain data, with all that its figures depend on."""
        return {
            "format": FORMAT,
            "suite": suite,
            "versions": environment.versions(),
            "revision": environment.revision(),
            "variables": environment.variables(),
            "device": devices.describe(self.device) | {"target": devices.target_name(self.device)},
            "machine": environment.machine(),
            "config": {key: getattr(self, key) for key in ("rounds", "seed", "parity_seed", "kernel")},
            "roofline": asdict(self.roofline),
            "parity": parity,
            "cases": cases,
        }


def begin(platform: str, rounds: int | None = None, seed: int | None = None) -> Session:
    """On the first device of a platform; without a seed fresh inputs are timed, and those of the tests compared.

    Raises:
        bench.gpu.device.NoDevice: there is none.
    """
    device = devices.find(platform)
    clock = clock_of(device)
    return Session(
        device,
        clock,
        roofline.of_device(device, clock),
        "triton" if platform == "gpu" else None,
        rounds or ROUNDS,
        secrets.randbits(32) if seed is None else seed,
        seed or 0,
    )
