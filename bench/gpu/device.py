"""The device that is measured: the GPU at hand or, to try the command out, the CPU."""

from typing import Any, TypeAlias

import jax

from bench.inspect.targets import TARGETS, Target
from megalodon_jax.cli.doctor import NO_DEVICES, why
from pallas_kernels._architecture import Architecture, architecture
from pallas_kernels._settings import Settings

Device: TypeAlias = Any  # jax.Device, in which type checkers see a variable

_INSTEAD = (
    "`python -m bench inspect` looks at the kernels without one; `--device cpu` tries this command out on tiny "
    "problems, without kernels."
)


class NoDevice(Exception):
    """There is no such device; the message is one line that says what to do instead."""


def find(platform: str) -> Device:
    """The first device of a platform, "gpu" or "cpu", where programs then run by default.

    Raises:
        NoDevice: there is none.
    """
    try:
        device = jax.devices(platform)[0]
    except NO_DEVICES as error:
        found = f"no NVIDIA GPU here: {why(error)}. {_INSTEAD}" if platform == "gpu" else f"no CPU here: {why(error)}"
        raise NoDevice(found) from error
    if device != jax.devices()[0]:
        jax.config.update("jax_default_device", device)
    return device


def describe(device: Device) -> dict[str, str | int | None]:
    """What a record says of it: sizes in bytes, None where jax does not tell."""
    stats = device.memory_stats() or {}
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "compute_capability": getattr(device, "compute_capability", None),
        "multiprocessors": getattr(device, "core_count", None),
        "memory_bytes": stats.get("bytes_limit"),
        "runtime": " ".join(device.client.platform_version.split()),
    }


def card(device: Device) -> Target | None:
    """Public figures of exactly this card, None where they are not known here."""
    return next((target for target in TARGETS.values() if target.card == device.device_kind), None)


def cache_bytes(device: Device) -> int:
    """Of the L2 cache, or that of the largest card known here."""
    known = card(device)
    return known.l2_bytes if known is not None else max(target.l2_bytes for target in TARGETS.values())


def target_name(device: Device) -> str:
    """The target of `compile_for` whose tiles the device gets, or its platform where no kernel runs on it."""
    found = architecture(Settings()) if device.platform == "gpu" else None
    return found.name if isinstance(found, Architecture) else device.platform
