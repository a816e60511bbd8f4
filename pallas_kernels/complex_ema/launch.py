"""Launching the ComplexEMA kernels: what they read and write, in one pass or with the ends of the chunks first."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from pallas_kernels._backends import triton as backend
from pallas_kernels._tiles import Plan, Tiles
from pallas_kernels.complex_ema import triton_forward as kernels
from pallas_kernels.complex_ema.coefficients import Coefficients
from pallas_kernels.complex_ema.problem import LANES, Problem, Tokens
from pallas_kernels.complex_ema.triton_backward import backward as triton_backward

FORWARD, BACKWARD = "complex_ema_forward", "complex_ema_backward"
ENDS, JOIN = "complex_ema_ends", "complex_ema_join"
ENDS_BLOCK = 16  # steps per tile: more than in the others, as nothing is read out
F32 = jnp.float32
States = tuple[Array, Array]


class Direction(NamedTuple):
    """One of the two walks over the sequence, and where something happens on it."""

    reverse: bool
    tokens: Tokens
    add: States | None = None  # [B, N, D], added to the state at the special token


def entering(
    plan: Plan, problem: Problem, tiles: Tiles, constants: Coefficients, x, way: Direction, first: States | None
) -> States | None:
    """The states [B, C, N, D] entering the chunks; `first` [B, N, D] enters the first one. None if all are 0."""
    chunks, _ = problem.chunks(tiles)
    if chunks == 1:
        return None if first is None else (first[0][:, None], first[1][:, None])
    B, N, D = problem.batch, problem.states, problem.features
    short = Tiles(ENDS_BLOCK, tiles.num_chunks, tiles.num_warps)
    inputs = {"x": x, **_walk(constants), **_tokens(way, problem.length, ENDS_BLOCK)}
    outputs = dict.fromkeys(("end_u", "end_v"), jax.ShapeDtypeStruct((B, chunks - 1, N, D), F32))
    ends = _launch(kernels.ends, ENDS, plan, problem, short, inputs, outputs, chunks - 1, reverse=way.reverse)

    flat = lambda a: a.reshape(*a.shape[:-2], N * D)  # noqa: E731
    first_u, first_v = (None, None) if first is None else map(flat, first)
    inputs = {
        "end_u": flat(ends.end_u), "end_v": flat(ends.end_v), "first_u": first_u, "first_v": first_v,
        **{name: flat(part) for name, part in constants.power._asdict().items()},
        "broken": None if way.tokens.resets is None else _any(way.tokens.resets, problem.chunks(tiles)[1]),
    }  # fmt: skip
    state = jax.ShapeDtypeStruct((B, chunks, N * D), F32)
    kernel = partial(
        kernels.join, problem=problem, tiles=tiles, fma=backend.fused_multiply_add(plan), reverse=way.reverse
    )
    width = kernels.LANES_OF_JOIN
    grid = (-(-N * D // width), B)
    tiles_of_join = Tiles(1, 1, width // LANES)
    done = backend.launch(kernel, JOIN, grid, inputs, {"start_u": state, "start_v": state}, tiles_of_join, plan)
    return done.start_u.reshape(B, chunks, N, D), done.start_v.reshape(B, chunks, N, D)


def forward(
    plan: Plan, problem: Problem, tiles: Tiles, constants: Coefficients, read: States, x, omega, way: Direction,
    start: States | None, *, return_state: bool,
):  # fmt: skip
    """y, and the returned state as a pair [B, N, D] or None."""
    B, N, D = problem.batch, problem.states, problem.features
    inputs = {
        "x": x, "omega": omega,
        **_walk(constants), **_read(read), **_start(start), **_tokens(way, problem.length, tiles.block_length),
    }  # fmt: skip
    last = jax.ShapeDtypeStruct((B, N, D), F32) if return_state else None
    outputs = {"y": jax.ShapeDtypeStruct(x.shape, x.dtype), "last_u": last, "last_v": last}
    done = _launch(kernels.forward, FORWARD, plan, problem, tiles, inputs, outputs, problem.chunks(tiles)[0])
    return done.y, ((done.last_u, done.last_v) if return_state else None)


def backward(
    plan: Plan, problem: Problem, tiles: Tiles, constants: Coefficients, read: States, x, dy, omega, way: Direction,
    start: States | None, h: States | None, opening, *, first: bool,
):  # fmt: skip
    """The outputs of the backward kernel, by name; `first`: also m at the first token."""
    chunks, _ = problem.chunks(tiles)
    B, N, D = problem.batch, problem.states, problem.features
    h_u, h_v = (None, None) if h is None else h
    inputs = {
        "x": x, "dy": dy, "omega": omega, "h_u": h_u, "h_v": h_v, "opening": opening,
        **_walk(constants), **_read(read), **_start(start), **_tokens(way, problem.length, tiles.block_length),
    }  # fmt: skip
    cell = jax.ShapeDtypeStruct((B, chunks, N, D), F32)
    state = jax.ShapeDtypeStruct((B, N, D), F32) if first else None
    outputs = {
        "dx": jax.ShapeDtypeStruct(x.shape, x.dtype), "sum_u": cell, "sum_v": cell, "slope_u": cell, "slope_v": cell,
        "domega": None if omega is None else jax.ShapeDtypeStruct((B, chunks, D), F32),
        "first_u": state, "first_v": state,
    }  # fmt: skip
    return _launch(triton_backward, BACKWARD, plan, problem, tiles, inputs, outputs, chunks)


def _launch(kernel, name: str, plan: Plan, problem: Problem, tiles: Tiles, inputs, outputs, chunks: int, **options):
    grid = (-(-problem.features // (LANES * tiles.num_warps)), chunks, problem.batch)
    run = partial(kernel, problem=problem, tiles=tiles, fma=backend.fused_multiply_add(plan), **options)
    return backend.launch(run, name, grid, inputs, outputs, tiles, plan)


def _walk(constants: Coefficients) -> dict:
    return constants.walk._asdict()


def _read(read: States) -> dict:
    return {"read_u": read[0], "read_v": read[1]}


def _start(start: States | None) -> dict:
    return dict(zip(("start_u", "start_v"), (None, None) if start is None else start, strict=True))


def _tokens(way: Direction, length: int, block: int) -> dict:
    """What a kernel wants to know about tokens, with the marks of its tiles."""
    valid, resets, special = way.tokens
    add_u, add_v = (None, None) if way.add is None else way.add
    marked = None if resets is None else _any(resets, block)
    if special is not None:
        tile = jnp.arange(-(-length // block), dtype=jnp.int32) == (special // block)[:, None]
        marked = tile.astype(jnp.int32) if marked is None else jnp.maximum(marked, tile.astype(jnp.int32))
    return {"valid": valid, "resets": resets, "special": special, "marked": marked, "add_u": add_u, "add_v": add_v}


def _any(flags, block: int):
    """[B, L] -> [B, ceil(L / block)], the largest of each block."""
    batch, length = flags.shape
    padded = jnp.pad(flags, ((0, 0), (0, -length % block)))
    return jnp.max(padded.reshape(batch, -1, block), axis=2)
