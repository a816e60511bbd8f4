r"""ComplexEMA on tensor cores: the other formulation, built as far as it takes to compare it with the kernels.

Of T steps of one feature, for R rows (a row is a chunk of a sequence) at once, with c = gamma p:

    Y = X K + H O        K[s, t] = Re(sum_n c_n q_n^(t-s)) for s <= t (omega on the diagonal), O[n, t] = c_n q_n^(t+1)
    H' = q^T H + X P                                                                          P[s, n] = q_n^(T-1-s)

h = p H, and K is a Toeplitz matrix. X is bfloat16 and exact; K, O, P and, in H O, the state are sums of bfloat16 parts,
as many as the result needs: two for y, which is bfloat16, three for the state.

As features do not interact, a program has F products of two dimensions for F adjacent features, cut out of one tile
[R, T, F]. Plain bfloat16 only: no mask, documents or state.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels._backends.triton import pl, plt

BF16, F32 = jnp.bfloat16, jnp.float32
PARTS_OF_Y, PARTS_OF_STATE = 2, 3


class Shape(NamedTuple):
    """Of a program: rows R, steps T of a tile, features F, warps; `chunk` is the length of a row."""

    rows: int
    steps: int
    features: int
    warps: int
    chunk: int


class Matrices(NamedTuple):
    """K [2, D, T, T], Re and Im of O [2, 2, D, N, T] and P [3, 2, D, T, N] in bfloat16 parts; q^T [2, D, N] float32."""

    between: jax.Array
    out: jax.Array
    into: jax.Array
    power: jax.Array


def matrices(p, q, gamma, omega, steps: int) -> Matrices:
    """From the parameters of the op, in float64."""
    with jax.enable_x64(True):
        q, c = q.astype(jnp.complex128), gamma.astype(jnp.complex128) * p.astype(jnp.complex128)
        time = jnp.arange(steps)
        factors = jnp.where(time == 0, jnp.ones_like(q)[..., None], q[..., None])
        powers = jnp.cumprod(factors, axis=-1)  # [D, N, T]
        filter_ = jnp.einsum("dn,dnt->dt", c, powers).real + jnp.where(
            time == 0, omega.astype(jnp.float64)[:, None], 0.0
        )
        lag = time[None, :] - time[:, None]
        between = jnp.where(lag >= 0, filter_[:, jnp.maximum(lag, 0)], 0.0)
        out = (c * q)[..., None] * powers
        into = powers[..., ::-1].swapaxes(1, 2)
        found = (
            _parts(between, PARTS_OF_Y),
            _parts(jnp.stack([out.real, -out.imag]), PARTS_OF_Y),
            _parts(jnp.stack([into.real, into.imag]), PARTS_OF_STATE),
            jnp.stack([(q**steps).real, (q**steps).imag]).astype(F32),
        )
    return Matrices(*found)


def _parts(value, number: int):
    """bfloat16 arrays, stacked, whose sum is the value; the last one rounds."""
    found = []
    for _ in range(number):
        found.append(value.astype(BF16))
        value = value - found[-1].astype(value.dtype)
    return jnp.stack(found)


def ends(x, given: Matrices, shape: Shape, **options):
    """H [2, D, rows, N] at the end of each row of x [rows, chunk, D], from 0."""
    outputs = jax.ShapeDtypeStruct((2, x.shape[2], x.shape[0], given.power.shape[2]), F32)
    return _call(_ends, "toeplitz_ends", x, shape, outputs, **options)(x, given.into, given.power)


def emit(x, start, given: Matrices, shape: Shape, **options):
    """y, from the states H that enter the rows."""
    outputs = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return _call(_emit, "toeplitz_emit", x, shape, outputs, **options)(x, start, *given)


def complex_ema(x, p, q, gamma, omega, shape: Shape, **options):
    """y [B, L, D] of x [B, L, D] bfloat16: chunk ends, joined step by step, then y."""
    batch, length, features = x.shape
    given = matrices(p, q, gamma, omega, shape.steps)
    rows = x.reshape(-1, shape.chunk, features)
    found = ends(rows, given, shape, **options)
    end = jax.lax.complex(found[0], found[1]).reshape(features, batch, length // shape.chunk, -1)
    through = jax.lax.complex(given.power[0], given.power[1])[:, None] ** (shape.chunk // shape.steps)
    step = lambda h, e: (through * h + e, h)  # noqa: E731
    start = jnp.moveaxis(jax.lax.scan(step, jnp.zeros_like(end[:, :, 0]), jnp.moveaxis(end, 2, 0))[1], 0, 2)
    start = jnp.stack([start.real, start.imag]).reshape(found.shape)
    return emit(rows, start, given, shape, **options).reshape(x.shape)


def _call(kernel, name: str, x, shape: Shape, outputs, **options):
    return pl.pallas_call(
        partial(kernel, shape=shape),
        name=name,
        grid=(x.shape[2] // shape.features, x.shape[0] // shape.rows),
        out_shape=outputs,
        compiler_params=plt.CompilerParams(num_warps=shape.warps, num_stages=1),
        **options,
    )


def _ends(x_ref, into, power, end, *, shape: Shape):
    zero = jnp.zeros((shape.rows, power.shape[2]), F32)
    states = _walk(shape, power, into, x_ref, [(zero, zero)] * shape.features, lambda *_: None)
    rows, first = _place(shape)
    for f, pair in enumerate(states):
        for part, value in enumerate(pair):
            plt.store(end.at[_int(part), first + f, rows], value)


def _emit(x_ref, start, between, out, into, power, y_ref, *, shape: Shape):
    rows, first = _place(shape)
    states = [tuple(plt.load(start.at[_int(part), first + f, rows]) for part in (0, 1)) for f in range(shape.features)]

    def write(index, xs, states):
        ys = []
        for f, (x, pair) in enumerate(zip(xs, states, strict=True)):
            y = plt.dot(x, plt.load(between.at[_int(0), first + f]))
            y = y + plt.dot(x, plt.load(between.at[_int(1), first + f]))
            for part, h in enumerate(pair):
                high = h.astype(BF16)
                low = (h - high.astype(F32)).astype(BF16)
                o, rest = (plt.load(out.at[_int(half), _int(part), first + f]) for half in (0, 1))
                y = y + plt.dot(high, o) + plt.dot(high, rest) + plt.dot(low, o)
            ys.append(y.astype(BF16))
        plt.store(y_ref.at[index], _side_by_side(ys))

    _walk(shape, power, into, x_ref, states, write)


def _walk(shape: Shape, power, into, x_ref, states, write):
    """The states after all tiles of the rows of a program."""
    rows, first = _place(shape)

    def tile(i, states):
        index = (rows, pl.ds(i * shape.steps, shape.steps), pl.ds(first, shape.features))
        xs = _apart(plt.load(x_ref.at[index]))
        write(index, xs, states)
        found = []
        for f, (x, (re, im)) in enumerate(zip(xs, states, strict=True)):
            a, b = (plt.load(power.at[_int(part), first + f])[None] for part in (0, 1))
            new = [
                sum(
                    plt.dot(x, plt.load(into.at[_int(piece), _int(part), first + f])) for piece in range(PARTS_OF_STATE)
                )
                for part in (0, 1)
            ]
            found.append((re * a - im * b + new[0], im * a + re * b + new[1]))
        return found

    return jax.lax.fori_loop(0, shape.chunk // shape.steps, tile, states)


def _place(shape: Shape):
    return pl.ds(pl.program_id(1) * shape.rows, shape.rows), pl.program_id(0) * shape.features


def _int(index: int):
    """An index that the interpreter takes as well."""
    return jnp.asarray(index, jnp.int32)


def _apart(tile):
    """The F matrices [R, T] of a tile [R, T, F]."""
    return [part.reshape(tile.shape[:2]) for part in jax.lax.split(tile, (1,) * tile.shape[2], axis=2)]


def _side_by_side(parts):
    """[R, T, F] of F matrices: the lowering joins two at a time."""
    if len(parts) == 1:
        return parts[0][..., None]
    pair = [_side_by_side(parts[0::2]), _side_by_side(parts[1::2])]
    return jnp.stack(pair, axis=-1).reshape(*parts[0].shape, len(parts))


def multiply_adds(shape: Shape, states: int, *, emits: bool) -> int:
    """Of one element of x, those of zeros above the diagonal of K included."""
    state = 2 * states * PARTS_OF_STATE
    return state + emits * (PARTS_OF_Y * shape.steps + 2 * states * 3)


def sector_bytes(elements: int, shape: Shape) -> int:
    """Bytes that a cache hands out for one pass over x: whole sectors of 32 bytes, of which 2 F are used."""
    return elements * 2 * math.ceil(32 / (2 * shape.features))
