"""complex_ema by kernels, and its gradient: what is saved, and what runs in each direction on each platform.

Saved by the forward, under this `checkpoint_name` for remat policies:

    complex_ema_states    pair of [B, C, N, D] float32, the states entering the chunks, h / p = u + i s v
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Int, Int32

import reference
from pallas_kernels._autodiff import explain_forward_mode, first_order_only
from pallas_kernels._call import Call
from pallas_kernels._sums import over_programs
from pallas_kernels._tiles import Tiles
from pallas_kernels.complex_ema import launch
from pallas_kernels.complex_ema.coefficients import Coefficients, away_from_zero, coefficients, plain, scaled
from pallas_kernels.complex_ema.launch import BACKWARD, FORWARD, Direction, States
from pallas_kernels.complex_ema.problem import Arrays, Problem, Tokens
from reference.segments import last_valid_index, state_resets, valid_tokens


class Integers(NamedTuple):
    """The arguments that have no gradient."""

    mask: Bool[Array, "B L"] | None
    segment_ids: Int[Array, "B L"] | None


class Residuals(NamedTuple):
    """What the forward keeps for the backward; `states` is None where they are all 0."""

    arrays: Arrays
    integers: Integers
    states: States | None


class Sweep(NamedTuple):
    """One walk back in time: dx, and sum x m, sum x e + q h e [D, N], domega, m at the first token [B, D, N]."""

    dx: Array
    sum: Array
    slope: Array
    domega: Array | None
    first: Array  # only with h0


def complex_ema(plan, x, p, q, gamma, omega=None, *, h0=None, mask=None, segment_ids=None, return_state=False):
    """complex_ema by Triton kernels; arguments as in the public op."""
    batch, length, features = x.shape
    call = Call(plan, Problem(batch, length, features, q.shape[1]), return_state)
    with explain_forward_mode("complex_ema"):
        y, h = _compiled(call, Arrays(x, p, q, gamma, omega, h0), Integers(mask, segment_ids))
    return (y, h) if return_state else y


def _ema(call: Call[Problem], arrays: Arrays, integers: Integers) -> tuple[Array, Any]:
    """y, and the returned state (None where it is not asked for)."""
    return call.by_platform(_kernel_forward, _reference_forward, arrays, integers)[:2]


def _forward(call: Call[Problem], arrays, integers):
    arrays, integers = jax.tree.map(lambda primal: primal.value, (arrays, integers))
    kernel, other = partial(_kernel_forward, save=True), partial(_reference_forward, save=True)
    run = first_order_only("complex_ema", partial(call.by_platform, kernel, other))
    y, h, states = run(arrays, integers)
    states = jax.tree.map(lambda part: checkpoint_name(part, "complex_ema_states"), states)
    return (y, h), Residuals(arrays, integers, states)


def _backward(call: Call[Problem], residuals: Residuals, cotangents):
    dy, dh = (None if isinstance(cotangent, SymbolicZero) else cotangent for cotangent in cotangents)
    run = first_order_only("complex_ema", partial(call.by_platform, _kernel_backward, _reference_backward))
    return run(residuals, dy, dh), None


_differentiable = jax.custom_vjp(_ema, nondiff_argnums=(0,))
_differentiable.defvjp(_forward, _backward, symbolic_zeros=True)
_compiled = jax.jit(_differentiable, static_argnums=(0,))  # so that eager calls are traced once


def _kernel_forward(call: Call[Problem], arrays: Arrays, integers: Integers, *, save: bool = False):
    problem, (x, p, q, gamma, omega, h0) = call.problem, arrays
    tiles = call.plan[FORWARD]
    if save:  # the states that are saved are those at the chunks of the backward
        tiles = Tiles(tiles.block_length, call.plan[BACKWARD].num_chunks, tiles.num_warps)
    constants = coefficients(q, problem.chunks(tiles)[1], divided_by=h0 is not None)
    unit = p.T if h0 is None else away_from_zero(p.T)
    first = None if h0 is None else scaled(h0, unit, constants.scale)
    last = _last(integers) if call.return_state else None
    way = Direction(False, Tokens(*_valid_and_resets(integers), None if last is None else jnp.maximum(last, 0)))
    start = launch.entering(call.plan, problem, tiles, constants, x, way, first)
    y, end = launch.forward(
        call.plan, problem, tiles, constants, _read(gamma.T * _complex(unit), constants), x, omega, way, start,
        return_state=call.return_state,
    )  # fmt: skip
    h = None if end is None else plain(unit * end[0], unit * end[1], constants.scale)
    if h is not None and last is not None:  # a row without a valid token returns what came in
        h = jnp.where((last < 0)[:, None, None], jnp.zeros_like(h) if h0 is None else h0, h)
    return y, h, (start if save else None)


def _kernel_backward(call: Call[Problem], residuals: Residuals, dy, dh) -> Arrays:
    _, p, q, gamma, omega, h0 = residuals.arrays
    tiles = call.plan[BACKWARD]
    divided_by = h0 is not None or dh is not None
    constants = coefficients(q, call.problem.chunks(tiles)[1], divided_by=divided_by)
    unit = p if h0 is None else away_from_zero(p.T).T
    sweep = partial(_sweep, call, residuals, constants)
    found = []
    if dy is not None:
        back = sweep(gamma.T * _complex(p.T), omega, dy=dy)
        dgamma = _complex(p) * back.sum
        if h0 is not None:
            dgamma += jnp.sum(q * back.first * h0, axis=0)
        found.append(_gradients(gamma, unit, q, h0, back)._replace(gamma=dgamma))
    if dh is not None:
        back = sweep(_complex(p.T), None, dh=dh)
        gradients = _gradients(jnp.ones_like(gamma), unit, q, h0, back)
        dh0, last = gradients.h0, _last(residuals.integers)
        if dh0 is not None and last is not None:
            dh0 += jnp.where((last < 0)[:, None, None], dh, 0.0)
        nothing = None if omega is None else jnp.zeros_like(omega)
        found.append(gradients._replace(gamma=jnp.zeros_like(gamma), omega=nothing, h0=dh0))
    return jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *found)


def _sweep(call: Call[Problem], residuals: Residuals, constants: Coefficients, c, omega, *, dy=None, dh=None) -> Sweep:
    """Walk back with dy, or with the cotangent dh of the returned state."""
    problem, plan, tiles = call.problem, call.plan, call.plan[BACKWARD]
    arrays, integers, states = residuals
    valid, resets = _valid_and_resets(integers)
    backwards = None if resets is None else jnp.pad(resets[:, 1:], ((0, 0), (0, 1)))
    way = Direction(True, Tokens(valid, backwards))
    if dh is not None:
        last = _last(integers)
        if last is None:
            last = jnp.full((problem.batch,), problem.length - 1, jnp.int32)
        else:
            dh = jnp.where((last < 0)[:, None, None], 0.0, dh)
        add = scaled(dh, jnp.ones_like(constants.scale), constants.scale)
        way = Direction(True, Tokens(valid, backwards, jnp.maximum(last, 0)), add)
    unmasked = way._replace(tokens=way.tokens._replace(valid=None))  # a masked token's dy counts
    start = launch.entering(plan, problem, tiles, constants, dy, unmasked, None)
    done = launch.backward(
        plan, problem, tiles, constants, _read(c, constants), arrays.x, dy, omega, way, start, states,
        None if resets is None else resets[:, :: problem.chunks(tiles)[1]], first=arrays.h0 is not None,
    )  # fmt: skip

    sum_u, sum_v, slope_u, slope_v = over_programs(done.sum_u, done.sum_v, done.slope_u, done.slope_v)
    (domega,) = over_programs(done.domega)
    return Sweep(
        done.dx,
        plain(sum_u, sum_v, constants.scale) * constants.halfway.T,
        plain(slope_u, slope_v, constants.scale) * constants.halfway.T,
        domega,
        None if arrays.h0 is None else plain(done.first_u, done.first_v, constants.scale),  # pyright: ignore
    )


def _gradients(gamma, unit, q, h0, back: Sweep) -> Arrays:
    """All but that of gamma."""
    dq = gamma * _complex(unit) * back.slope
    dh0 = None
    if h0 is not None:
        dq += gamma * jnp.sum(back.first * h0, axis=0)
        dh0 = gamma * q * back.first
    return Arrays(back.dx, jnp.real(gamma * back.sum), dq, None, back.domega, dh0)  # pyright: ignore[reportArgumentType]


def _complex(real: Array) -> Array:
    return real.astype(jnp.complex64)


def _read(c, constants: Coefficients) -> States:
    c = c * constants.halfway
    return jnp.real(c), -constants.scale * jnp.imag(c)


def _valid_and_resets(integers: Integers):
    valid = valid_tokens(*integers)
    resets = None if integers.segment_ids is None else state_resets(integers.segment_ids).astype(jnp.int32)
    return (None if valid is None else valid.astype(jnp.int32)), resets


def _last(integers: Integers) -> Int32[Array, " B"] | None:
    """Token that the returned state belongs to, -1 in a row without a valid one; None: the last of all."""
    if integers.segment_ids is None:
        return None
    valid = valid_tokens(*integers)
    assert valid is not None
    return last_valid_index(valid)


def _reference(call: Call[Problem], arrays: Arrays, integers: Integers):
    x, p, q, gamma, omega, h0 = arrays
    y, h = reference.complex_ema(
        x, p, q, gamma, omega, h0=h0, mask=integers.mask, segment_ids=integers.segment_ids, return_state=True
    )
    return y, (h if call.return_state else None)


def _reference_forward(call: Call[Problem], arrays: Arrays, integers: Integers, *, save: bool = False):
    y, h = _reference(call, arrays, integers)
    problem = call.problem
    chunks, _ = problem.chunks(call.plan[BACKWARD])
    if not save or (chunks == 1 and arrays.h0 is None):
        return y, h, None
    # The reference's backward starts afresh: what it is not to read is not a number.
    unused = jnp.full((problem.batch, chunks, problem.states, problem.features), jnp.nan, jnp.float32)
    return y, h, (unused, unused)


def _reference_backward(call: Call[Problem], residuals: Residuals, dy, dh) -> Arrays:
    (y, h), pullback = jax.vjp(lambda arrays: _reference(call, arrays, residuals.integers), residuals.arrays)
    dy = jnp.zeros_like(y) if dy is None else dy
    return pullback((dy, None if h is None else jnp.zeros_like(h) if dh is None else dh))[0]
