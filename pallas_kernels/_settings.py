"""What the choice of an implementation depends on beside the arguments: one frozen value in jit's cache key.

A plain global is invisible to jit: a function traced once under one setting would be reused under another. The
settings therefore live in a `jax.make_user_context`, so that the same jitted function is traced again under
`use_implementation`, `strict` or `compile_for`, and again when the block ends.

Environment, read once at import:

    PALLAS_KERNELS_IMPLEMENTATION   per-op override, e.g. "complex_ema=xla,timestep_norm=triton"
    PALLAS_KERNELS_STRICT           1: a fallback nobody asked for is an error on a GPU target
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax

OPS = (
    "complex_ema", "timestep_norm", "chunked_attention", "normalized_rotary", "fused_linear", "feature_norm",
    "round_weights", "linear_cross_entropy",
)  # fmt: skip
IMPLEMENTATIONS = ("xla", "triton", "triton_interpret")
TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120")

Implementation = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Settings:
    """Everything that steers dispatch; hashable, compared by value."""

    overrides: tuple[tuple[str, str | tuple[str, ...]], ...] = ()
    strict: bool = False
    target: str | None = None  # a GPU architecture to build for, or None for the platform at hand
    tiles: tuple[tuple[str, Any], ...] = ()  # launch shapes set by `use_tiles`, by kernel
    tuned: tuple[tuple[Any, ...], ...] = ()  # the tuning cache

    def override(self, op: str) -> Implementation:
        """The implementation set for `op`, None if there is none."""
        return dict(self.overrides).get(op)


def check_implementation(op: str, implementation: Implementation) -> None:
    """Raise ValueError for a name that no implementation of any op has."""
    if implementation is None:
        return
    names = implementation if isinstance(implementation, tuple) else (implementation,)
    if not names or not all(name in IMPLEMENTATIONS for name in names):
        raise ValueError(
            f"{op}: implementation must be None, one of {', '.join(map(repr, IMPLEMENTATIONS))}, "
            f"or a tuple of them tried in order; got {implementation!r}."
        )


def _with_overrides(settings: Settings, overrides: Mapping[str, Implementation], source: str) -> Settings:
    merged = dict(settings.overrides)
    for op, implementation in overrides.items():
        if op not in OPS:
            raise ValueError(f"{source}: unknown op {op!r}; the ops are {', '.join(OPS)}.")
        check_implementation(f"{source}: {op}", implementation)
        merged.pop(op, None)
        if implementation is not None:
            merged[op] = implementation
    return replace(settings, overrides=tuple(sorted(merged.items())))


def settings_from_environment(environment: Mapping[str, str]) -> Settings:
    """Settings from PALLAS_KERNELS_IMPLEMENTATION and PALLAS_KERNELS_STRICT.

    Raises:
        ValueError: an entry that is not op=implementation, an unknown op or name, or a STRICT that is not 0 or 1.
    """
    name = "PALLAS_KERNELS_IMPLEMENTATION"
    overrides = {}
    for entry in filter(None, environment.get(name, "").split(",")):
        op, separator, implementation = entry.partition("=")
        if not separator:
            raise ValueError(f"{name}: expected op=implementation separated by commas, got {entry!r}.")
        overrides[op.strip()] = implementation.strip()
    flag = environment.get("PALLAS_KERNELS_STRICT", "0")
    if flag not in ("0", "1", ""):
        raise ValueError(f"PALLAS_KERNELS_STRICT must be 0 or 1, got {flag!r}.")
    return _with_overrides(Settings(strict=flag == "1"), overrides, name)


_context = jax.make_user_context(settings_from_environment(os.environ))


def current() -> Settings:
    """The settings in force here."""
    return _context.value


def set_default(settings: Settings) -> None:
    """Replace what holds outside every block."""
    _context.set_global(settings)


def settings_context(settings: Settings):
    """Context manager: these settings inside the block."""
    return _context(settings)


@contextmanager
def use_implementation(**overrides: Implementation) -> Iterator[None]:
    """Choose implementations per op inside the block: `with use_implementation(complex_ema="xla"): ...`.

    None lifts an override set further out. Functions already jitted are traced again inside, and back outside.

    Raises:
        ValueError: unknown op or implementation.
    """
    with settings_context(_with_overrides(current(), overrides, "use_implementation")):
        yield


@contextmanager
def strict(enabled: bool = True) -> Iterator[None]:
    """Inside the block a fallback nobody asked for is an error on a GPU target (`KernelUnavailable`)."""
    with settings_context(replace(current(), strict=enabled)):
        yield


@contextmanager
def compile_for(target: str) -> Iterator[None]:
    """Choose implementations as on the GPU architecture `target`, for tracing and compiling without that GPU.

    Raises:
        ValueError: unknown target.
    """
    if target not in TARGETS:
        raise ValueError(f"compile_for: target must be one of {', '.join(TARGETS)}, got {target!r}.")
    with settings_context(replace(current(), target=target)):
        yield
