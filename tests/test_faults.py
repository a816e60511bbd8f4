"""Seeded faults: each must be caught by at least one rung of the ladder, and this says by which.

The faults are put into the TimestepNorm kernels themselves. `interpreted` is a parity test in Pallas' interpreter,
`executed` the same test on the lowered IR, where memory is watched.
"""

import jax
import jax.numpy as jnp
import pytest

from bench import parity
from bench.inspect.triton_ir import KernelFault
from bench.tolerance import within
from pallas_kernels.timestep_norm import math, problem, triton_backward, triton_forward
from pallas_kernels.timestep_norm.specs import PARITY
from tests import kernel_parity

SPECS = {spec.name: spec for spec in PARITY}


def one_row_too_many(monkeypatch):
    """The mask of a ragged tail lets one row too many through, in loads and stores."""
    times = problem.Cursor.times

    def wrong(self, tile):
        t, exists = times(self, tile)
        return t, None if exists is None else t <= self.stop

    monkeypatch.setattr(problem.Cursor, "times", wrong)


def tail_stored_without_mask(monkeypatch):
    """The forward stores whole tiles: its last one ends behind the array."""
    store = triton_forward.store
    monkeypatch.setattr(triton_forward, "store", lambda ref, index, value, mask=None: store(ref, index, value))


def chunks_overlap(monkeypatch):
    """Every chunk but the first begins one token early, so that two programs write the same row."""
    init = problem.Cursor.__init__

    def wrong(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.start = jnp.maximum(self.start - 1, 0)

    monkeypatch.setattr(problem.Cursor, "__init__", wrong)


def variance_not_stored(monkeypatch):
    """The forward leaves out one of the statistics that the backward reads."""
    store, calls = triton_forward.store, []

    def wrong(ref, index, value, mask=None):
        calls.append(ref)
        if len(index) != 3 or len(calls) % 3:  # y, token_mean, token_var
            store(ref, index, value, mask)

    monkeypatch.setattr(triton_forward, "store", wrong)


def sign_swapped(monkeypatch):
    """The backward subtracts what comes through the variance."""
    retreat = math.retreat
    monkeypatch.setattr(triton_backward.math, "retreat", lambda dm, dv, *rest: retreat(dm, -dv, *rest))


# name: (how, spec it shows on, caught by parity when interpreted, caught when the IR is executed: how)
FAULTS = {
    "race": (chunks_overlap, "chunks", True, KernelFault),
    "swapped sign in the backward": (sign_swapped, "plain", True, AssertionError),
    "off-by-one mask": (one_row_too_many, "ragged", True, KernelFault),
    "store without its mask": (tail_stored_without_mask, "heuristic tiles", False, KernelFault),
    "missing store": (variance_not_stored, "plain", True, KernelFault),
}


def parity_holds(spec, rung: str) -> None:
    for line in parity.compare(spec, rung):
        assert within(line), line.name


@pytest.fixture
def uncached():
    """Nothing traced with a fault in it is found by another test."""
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("uncached")
@pytest.mark.parametrize("name", kernel_parity.first([*FAULTS], 2))
def test_every_fault_is_caught(name, monkeypatch):
    seed, spec_name, interpreted, executed = FAULTS[name]
    spec = SPECS[spec_name]
    for rung in ("triton_interpret", "lowered"):
        parity_holds(spec, rung)
    seed(monkeypatch)
    jax.clear_caches()
    if interpreted:
        with pytest.raises(AssertionError):
            parity_holds(spec, "triton_interpret")
    else:  # the interpreter silently drops what is stored out of bounds
        parity_holds(spec, "triton_interpret")
    with pytest.raises(executed):
        parity_holds(spec, "lowered")
