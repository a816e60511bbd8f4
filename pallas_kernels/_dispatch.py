"""Which implementation of an op runs, why, and what to do when none can.

`NotImplementedError` (here `KernelUnavailable`) means "not this implementation, try the next"; `ValueError` means
"your input is wrong, stop". `implementation=None` never raises outside `strict()`: it takes the first implementation
that does not refuse, and logs a fallback once.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import jax

from pallas_kernels import _settings
from pallas_kernels._tiles import Launch, Plan

logger = logging.getLogger("pallas_kernels")


class KernelUnavailable(NotImplementedError):
    """A named implementation cannot run here: carries op, implementation, reason and what to change."""

    def __init__(self, op: str, implementation: str, reason: str, remedy: str):
        self.op, self.implementation, self.reason, self.remedy = op, implementation, reason, remedy
        super().__init__(f"{op}: implementation {implementation!r} is not available: {reason}. {remedy}")


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    Attributes:
        name: as in `implementation=`.
        run: `run(plan, *args, **kwargs)`.
        refuse: `refuse(settings, *args, **kwargs)`, the reason why it cannot run, or None.
        launches: `launches(settings, *args, **kwargs)`, the kernels it launches.
        pays: `pays(*args, **kwargs)`, whether it is worth it where nobody asks for it.
    """

    name: str
    run: Callable
    refuse: Callable[..., str | None]
    launches: Callable[..., tuple[Launch, ...]]
    pays: Callable[..., bool]

    def plan(self, settings: _settings.Settings, portable: bool, *args, **kwargs) -> Plan:
        """Everything about a call that is decided at op entry."""
        tiles = tuple((launch.kernel, launch.tiles) for launch in self.launches(settings, *args, **kwargs))
        return Plan(self.name == "triton_interpret", settings.target, portable, tiles)


def reference_implementation(function: Callable) -> Implementation:
    """The pure-jnp function: never refuses, launches no kernel."""
    return Implementation("xla", lambda plan, *args, **kwargs: function(*args, **kwargs), _none, _nothing, _always)


@dataclass(frozen=True)
class Op:
    """An op: validation and its implementations; None takes the first that does not refuse and pays."""

    name: str
    check: Callable[..., None]
    implementations: tuple[Implementation, ...]

    def __call__(self, *args, implementation: _settings.Implementation = None, **kwargs):
        """Validate, choose, run."""
        self.check(*args, **kwargs)
        chosen = self.choose(implementation, *args, **kwargs)
        settings = _settings.current()
        asked = settings.override(self.name) if implementation is None else implementation
        portable = asked is None or (isinstance(asked, tuple) and "xla" in asked[asked.index(chosen.name) :])
        return chosen.run(chosen.plan(settings, portable, *args, **kwargs), *args, **kwargs)

    def refusals(self, *args, **kwargs) -> dict[str, str | None]:
        """Reason for refusing, or None, for every known implementation name."""
        settings = _settings.current()
        present = {i.name: i for i in self.implementations}
        return {
            name: present[name].refuse(settings, *args, **kwargs)
            if name in present
            else f"this version has no such kernel for {self.name}"
            for name in _settings.IMPLEMENTATIONS
        }

    def choose(self, implementation: _settings.Implementation, *args, **kwargs) -> Implementation:
        """The implementation that would run.

        Raises:
            KernelUnavailable: a named implementation (or every one of a tuple) refuses; or, under `strict()` on a GPU
                target, no kernel is available.
            ValueError: unknown implementation name.
        """
        _settings.check_implementation(self.name, implementation)
        settings = _settings.current()
        asked = settings.override(self.name) if implementation is None else implementation
        refusals = self.refusals(*args, **kwargs)
        present = {i.name: i for i in self.implementations}
        if asked is None:
            return self._best(refusals, *args, **kwargs)
        names = (asked,) if isinstance(asked, str) else asked
        for name in names:
            if refusals[name] is None:
                return present[name]
        reason = "; ".join(f"{name}: {refusals[name]}" for name in names)
        raise KernelUnavailable(
            self.name, " or ".join(names), reason, 'Use implementation=None or "xla", or see explain().'
        )

    def _best(self, refusals, *args, **kwargs) -> Implementation:
        worth = [i for i in self.implementations if i.pays(*args, **kwargs)]
        chosen = next(i for i in worth if refusals[i.name] is None)
        if chosen.name == "xla" and worth[0] is not chosen:
            fall_back(self.name, str(refusals["triton"]))
        return chosen


def fall_back(op: str, reason: str) -> None:
    """On a GPU say once that the reference runs in place of a kernel; under `strict()` raise KernelUnavailable."""
    settings = _settings.current()
    if not on_gpu(settings):
        return
    if settings.strict:
        remedy = 'Pass implementation="xla" where the reference is meant to run.'
        raise KernelUnavailable(op, "triton", reason, remedy)
    _log_once(f"{op}: using the reference implementation 'xla': {reason}.")


def on_gpu(settings: _settings.Settings) -> bool:
    """Is the program meant for an NVIDIA GPU: by `compile_for`, else by the default backend?"""
    return settings.target is not None or jax.default_backend() == "gpu"


def _none(*args, **kwargs) -> None:
    pass


def _always(*args, **kwargs) -> bool:
    return True


def _nothing(*args, **kwargs) -> tuple[Launch, ...]:
    return ()


@cache
def _log_once(message: str) -> None:
    logger.info(message)
