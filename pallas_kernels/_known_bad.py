"""Compilers that are known to make wrong code of kernels for an architecture: there kernels refuse, with the reason.

Of the versions that this package takes (jax 0.10.2 and newer) none is known. What has been reported of them (jax-ml/jax
issues 39486, 40588 and 40633) is code of XLA's own, which no refusal avoids. A kernel that fails `python -m
megalodon_jax selftest` on a card and passes it on another belongs here.
"""

import re
from dataclasses import dataclass
from importlib.metadata import version

Version = tuple[int, ...]


@dataclass(frozen=True)
class KnownBad:
    """Compilers of jaxlib from a version on (`first`) and before another (`fixed`, None while there is none).

    Attributes:
        targets: the architectures, as `compile_for` names them.
        reason: what goes wrong, and where it is reported.
    """

    targets: tuple[str, ...]
    first: Version
    fixed: Version | None
    reason: str


KNOWN_BAD: tuple[KnownBad, ...] = ()


def refuse(target: str, jaxlib: str | None = None) -> str | None:
    """Why a version of jaxlib (default: that installed) is not to compile kernels for an architecture, or None."""
    installed = version("jaxlib") if jaxlib is None else jaxlib
    number = tuple(map(int, re.findall(r"\d+", installed)[:3]))
    for known in KNOWN_BAD:
        if target in known.targets and known.first <= number and (known.fixed is None or number < known.fixed):
            remedy = "" if known.fixed is None else f"; jaxlib {'.'.join(map(str, known.fixed))} is right"
            return f"jaxlib {installed} is known to make wrong code for {target}: {known.reason}{remedy}"
    return None
