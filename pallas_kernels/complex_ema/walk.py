"""A walk over the steps of one chunk, shared by all kernels: tiles of steps, and single steps where something happens.

A tile of BLOCK steps is loaded at once, the next one while the present one is worked on, and its steps are unrolled.
Tiles that are `marked`, and what is left of a chunk that is no whole number of tiles, are walked step by step.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
from jax import lax

from pallas_kernels._backends.triton import load, rows, stack_rows, store
from pallas_kernels.complex_ema.math import STEADY
from pallas_kernels.complex_ema.problem import Cursor

Carry = Any


def walk(
    refs: SimpleNamespace,
    at: Cursor,
    carry: Carry,
    *,
    inputs: Sequence[Any],
    steps: Callable[..., tuple[Carry, Sequence[Any]]],
    forget: Callable[[Any, Carry], Carry],
    turn_back: Callable[[Any, Carry], Carry],
    output: Any = None,
) -> Carry:
    """Walk over the chunk and return the last carry.

    Args:
        refs: refs of resets [B, L], marked [B, M] and special [B], or None.
        at: where the program is.
        carry: what is carried from step to step.
        inputs: refs [B, L, D], and of [B, L] that hold for all features; None for one that is not there.
        steps: `steps(carry, values, hit)` -> (carry, outputs) of one step or a tile of them: `values` and outputs are
            sequences over the steps, with the values of all inputs in each. `hit` says whether a single step is the
            special one; None on a tile.
        forget: `forget(reset, carry)`, the state thrown away.
        turn_back: `turn_back(due, carry)`, the state after STEADY steps turned back if `due`.
        output: ref [B, L, D] of the outputs, or None.
    """
    tiles, per_stretch = at.steps // at.block, STEADY // at.block
    rest = at.steps - tiles * at.block

    def load_tile(tile):
        index, mask = at.tile(first_tile + tile * at.block)
        return tuple(load(ref, _for(ref, index), mask) for ref in present)

    def one(number, carry):
        """A single step."""
        t = at.time(number)
        if refs.resets is not None:
            carry = forget(load(refs.resets, (at.row, t)) > 0, carry)
        index = (at.row, jnp.full((at.width,), t), at.columns)
        hit = None if refs.special is None else t == load(refs.special, (at.row,))
        values = [load(ref, _for(ref, index), at.lanes) for ref in present]
        carry, results = steps(carry, [_with_none(inputs, values)], hit)
        if output is not None:
            store(output, index, results[0], at.lanes)
        return carry

    def whole(tile, carry, raw):
        """All steps of a tile."""
        values = list(zip(*map(rows, raw), strict=True)) if raw else [()] * at.block
        carry, results = steps(carry, [_with_none(inputs, each) for each in values], None)
        if output is not None:
            index, mask = at.tile(first_tile + tile * at.block)
            store(output, index, stack_rows([result.astype(output.dtype) for result in results]), mask)
        return carry

    def stretch(number, carry):
        """At most STEADY steps; the stretches begin at the chunk's beginning in time."""
        short = (per_stretch - tiles % per_stretch) % per_stretch if at.reverse else 0  # of the first one walked
        begin = jnp.maximum(number * per_stretch - short, 0)
        end = jnp.minimum((number + 1) * per_stretch - short, tiles)

        def body(tile, carry):
            carry, raw = carry
            following = load_tile(jnp.minimum(tile + 1, tiles - 1))
            if refs.marked is None:
                return whole(tile, carry, raw), following
            first = first_tile + tile * at.block
            mark = load(refs.marked, (at.row, jnp.minimum(at.time(first), at.time(first + at.block - 1)) // at.block))
            singly = lambda carry: lax.fori_loop(first, first + at.block, one, carry)  # noqa: E731
            return lax.cond(mark > 0, singly, lambda carry: whole(tile, carry, raw), carry), following

        carry, raw = lax.fori_loop(begin, end, body, carry)
        return turn_back(end - begin == per_stretch, carry), raw

    present = [ref for ref in inputs if ref is not None]
    first_tile = 0
    if at.ragged and at.reverse:
        first_tile = rest
        carry = lax.fori_loop(0, rest, one, carry)
    stretches = (tiles + per_stretch - 1) // per_stretch
    carry, _ = lax.fori_loop(0, stretches, stretch, (carry, load_tile(0)))
    if at.ragged and not at.reverse:
        carry = lax.fori_loop(tiles * at.block, at.steps, one, carry)
    return carry


def _for(ref, index):
    """The index for a ref: those of [B, L] have no features."""
    return index if len(ref.shape) == 3 else index[:2]


def _with_none(inputs: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """The values in the places of the refs that are there."""
    rest = iter(values)
    return [None if ref is None else next(rest) for ref in inputs]
