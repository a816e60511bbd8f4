"""Suite `ops` on a GPU: kernels, the XLA reference and the usual formulations of each op, on problems of its specs.

Each problem is first compared with the float64 oracle, in one row of its batch, with as many heads and as long as the
oracle's memory allows; at full size every implementation has to agree with the reference.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from bench import ops, parity
from bench.gpu.cases import Subject, differences, measure
from bench.gpu.checks import entry
from bench.gpu.session import Session
from bench.modes import BACKWARD, FORWARD, FORWARD_BACKWARD, RESIDUALS, build, modes
from bench.ops import Spec, Titled
from bench.problems import shortened

REFERENCE = "xla"
NAMES = ("headline", "fused_linear: 2560 to 512", "linear_cross_entropy: 512 to 32000")
TINY = ("plain", "linear_cross_entropy: whole blocks")  # for CPU


def at_lengths(specs: Titled, lengths: Sequence[int]) -> Titled:
    """Every spec at every length; as they are where there is none."""
    if not lengths:
        return specs
    return {f"{title}, L = {n}": replace(spec, length=n) for title, spec in specs.items() for n in lengths}


def run(specs: Titled, session: Session, only: Sequence[str] = ()) -> dict:
    """The record of these problems, in the modes named or in all.

    Raises:
        ValueError: no problem has any of those named.
    """
    left = {title: spec for title, spec in specs.items() if not only or set(only) & set(modes(spec))}
    if not left:
        raise ValueError(f"none of {', '.join(specs)} has the mode {' or '.join(only)}")
    for title in (title for title in specs if title not in left):
        print(f"left out: {title}, which has only {', '.join(modes(specs[title]))}", file=sys.stderr)
    checked, cases = [], []
    for title, spec in left.items():
        print(f"measuring {title} ...", file=sys.stderr, flush=True)
        checked.append(check(title, spec, session))
        for subject in subjects(title, spec, session, passed=checked[-1]["passed"], only=only):
            cases.append(measure(subject, session.clock, session.rounds, session.roofline))
    return session.record("ops", cases, checked)


def check(title: str, spec: Spec, session: Session, shorten: bool = True) -> dict:
    """Errors of the kernels, and of the reference, against the float64 oracle; of the reference alone without them."""
    spec, rung = shortened(spec) if shorten else spec, session.kernel or REFERENCE
    problem = ops.of(spec).describe(spec)
    return entry(title, problem, spec.length, lambda: parity.compare(spec, rung, session.parity_seed))


def subjects(title: str, spec: Spec, session: Session, *, passed: bool, only: Sequence[str] = ()) -> Iterator[Subject]:
    """A problem in each of its modes."""
    op = ops.of(spec)
    kernels = () if session.kernel is None else (session.kernel,)
    inputs = jax.tree.map(jnp.asarray, op.inputs(spec, session.seed))
    for mode in modes(spec):
        if only and mode not in only:
            continue
        yield Subject(
            title=title,
            problem=op.describe(spec),
            length=spec.length,
            mode=mode,
            implementations={
                name: partial(_build, spec, mode, name, inputs, session.seed)
                for name in (REFERENCE, *kernels, *op.baselines(spec))
            },
            unproven=() if passed else kernels,
            operations=operations(spec, mode),
            dtype=jnp.dtype(spec.dtype).name,
            agree=differences,
        )


def _build(spec: Spec, *arguments):
    with parity.tiles_of(spec):
        return build(spec, *arguments)


def operations(spec: Spec, mode: str) -> int:
    """Floating-point operations of the matrix products that the results of a mode need."""
    forward, both = (ops.of(spec).least_multiply_adds(spec, one) for one in (FORWARD, FORWARD_BACKWARD))
    return 2 * {FORWARD: forward, RESIDUALS: forward, BACKWARD: both - forward, FORWARD_BACKWARD: both}[mode]
