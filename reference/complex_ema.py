r"""Complex exponential moving average, pure jnp (Megalodon, arXiv 2404.08801, section 3.1).

Recurrence, per batch row and feature, over N complex states:

    h[t] = q h[t-1] + p x[t]                    y[t] = Re(sum_n gamma_n h[t, n]) + omega x[t]

Chunked form. Cut time into chunks of T steps and let `h` be the state entering a chunk. Inside the chunk

    y[t]  = sum_{j<=t} k[t-j] x[j] + Re(sum_n gamma_n q_n^(t+1) h_n),
    k[i]  = Re(sum_n gamma_n p_n q_n^i)
    h'    = q^T h + sum_j p q^(T-1-j) x[j]

so a chunk is two small matrix products per feature (`ChunkOperators`), and only one state per chunk is carried
step by step. Powers of q come from repeated squaring of q itself (`_powers`), never from exp(j log q) over the whole
length: the error does not grow with the length of the memory, and q = 0 needs no special case.

Memory. Chunks are grouped into blocks; `lax.scan` walks over blocks and each block is rematerialised in the backward,
so beside inputs and outputs only one state per block is kept, and the working set of a block stays in cache. The
derivatives of the powers are written by hand (`_powers`), everything else is a matrix product whose transpose JAX
knows: reverse mode, forward mode and higher derivatives all work.

Packed documents reset the state inside a chunk, which makes the operators differ from row to row; there the recurrence
is run step by step (a scan over checkpointed chunks), and `where` throws the old state away, so nothing of one
document reaches another.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Complex64, Float, Float32, Int

from reference._powers import decay_powers
from reference.segments import state_resets, valid_tokens

_CHUNK = 32  # T: steps per chunk; measured fastest among 32, 64, 128 on CPU
_BLOCK = 1024  # steps per rematerialised block
_PACKED_CHUNK = 64  # steps per rematerialised chunk of the packed path

_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


class ChunkOperators(NamedTuple):
    """The linear maps of one chunk of T steps, per feature; complex pairs are stacked as (real, imaginary) halves."""

    emit: Float32[Array, "D S T"]  # chunk input (k[t-j]) and state entering the chunk -> output
    write: Float32[Array, "D T 2N"]  # chunk input -> state leaving the chunk
    decay: Complex64[Array, "D N"]  # q^T in float32 ...
    decay_rest: Complex64[Array, "D N"]  # ... and what float32 leaves out of it


@partial(jax.jit, static_argnames="return_state")
def complex_ema(
    x: Float[Array, "B L D"],
    p: Float32[Array, "D N"],
    q: Complex64[Array, "D N"],
    gamma: Complex64[Array, "D N"],
    omega: Float32[Array, " D"] | None = None,
    *,
    h0: Complex64[Array, "B D N"] | None = None,
    mask: Bool[Array, "B L"] | None = None,
    segment_ids: Int[Array, "B L"] | None = None,
    return_state: bool = False,
):
    """Reference complex_ema; arguments, shapes and meaning as in `pallas_kernels.complex_ema`."""
    valid = valid_tokens(mask, segment_ids)
    inputs = x.astype(jnp.float32)
    if valid is not None:
        inputs = jnp.where(valid[..., None], inputs, 0.0)
    if h0 is None:
        # Zero made from the inputs, so that under shard_map it varies over the same mesh axes as they do.
        h0 = jnp.zeros_like(inputs[:, 0, :, None] * p).astype(q.dtype)
    if x.shape[1] == 1:
        y, h = _step(inputs, p, q, gamma, h0)
        if segment_ids is not None:
            assert valid is not None
            h = jnp.where(valid[:, :, None], h, h0)
    elif segment_ids is None:
        y, h = _chunked(inputs, p, q, gamma, h0)
    else:
        assert valid is not None
        y, h = _packed(inputs, p, q, gamma, h0, state_resets(segment_ids), valid, return_state)
    if omega is not None:
        y = y + omega * inputs
    y = y.astype(x.dtype)
    return (y, h) if return_state else y


def _step(x, p, q, gamma, h0):
    h = q * h0 + (p * x[:, 0, :, None]).astype(q.dtype)
    return jnp.sum(jnp.real(gamma * h), -1)[:, None], h


def _chunked(x, p, q, gamma, h0):
    """The plain path: whole blocks, then the chunks that are left, then the steps that are left."""
    length = x.shape[1]
    whole = length - length % _BLOCK
    chunks = length - length % _CHUNK
    outputs, h = [], h0
    for start, stop, block, chunk in (
        (0, whole, _BLOCK, _CHUNK),
        (whole, chunks, chunks - whole, _CHUNK),
        (chunks, length, length - chunks, length - chunks),
    ):
        if stop > start:
            # The barriers keep XLA from forming the operators again inside every block. One each: jax 0.12 cannot
            # transpose a barrier around several arrays of which some have no gradient.
            operators = ChunkOperators(*map(lax.optimization_barrier, _operators(p, q, gamma, chunk)))
            y, h = _scan_blocks(x[:, start:stop], operators, h, block)
            outputs.append(y)
    return (outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)), h


def _operators(p, q, gamma, chunk: int) -> ChunkOperators:
    powers, rest = decay_powers(q, chunk)
    p = p.astype(powers.dtype)
    taps = jnp.sum(jnp.real((gamma * p)[..., None] * powers[..., :chunk]), axis=1)
    write = p[..., None] * powers[..., chunk - 1 :: -1]
    read = gamma[..., None] * powers[..., 1 : chunk + 1]
    return ChunkOperators(
        emit=jnp.concatenate([_toeplitz(taps), jnp.real(read), -jnp.imag(read)], axis=1),
        write=jnp.concatenate([jnp.real(write), jnp.imag(write)], axis=1).transpose(0, 2, 1),
        decay=powers[..., chunk],
        decay_rest=rest,
    )


def _toeplitz(taps: Float32[Array, "D T"]) -> Float32[Array, "D T T"]:
    """[j, t] = taps[t-j], zero below the diagonal: one broadcast and reshapes, so that the backward has no scatter."""
    features, size = taps.shape
    row = jnp.concatenate([taps, jnp.zeros_like(taps)], axis=1)
    rows = jnp.broadcast_to(row[:, None], (features, size, 2 * size)).reshape(features, -1)
    skewed = rows[:, : size * (2 * size - 1)].reshape(features, size, 2 * size - 1)
    return skewed[:, :, :size]


def _scan_blocks(x, operators: ChunkOperators, h0, block: int):
    """Walk over blocks of all rows in one scan: row b owns blocks b*n .. b*n+n-1, so no activation is transposed."""
    batch, length, features = x.shape
    count = length // block

    @jax.checkpoint
    def body(h, inputs):
        x_block, index = inputs
        row = index // count
        h = jnp.where(index % count == 0, h0[row], h)
        y, h = _block(x_block, operators, h)
        return h, (y, h)

    steps = (x.reshape(batch * count, block, features), jnp.arange(batch * count))
    _, (y, states) = lax.scan(body, h0[0], steps)
    return y.reshape(batch, length, features), states[count - 1 :: count]


def _block(x, operators: ChunkOperators, h):
    """One block of one row: x [block, D], h [D, N] -> y [block, D], state leaving the block."""
    emit, write, decay, rest = operators
    states, chunk = decay.shape[1], write.shape[1]
    # The barriers keep transposes, products and scan apart: XLA would fold a transpose into a slower product, and
    # repeat a product inside the scan.
    chunks = lax.optimization_barrier(_feature_major(x, chunk))
    sources = lax.optimization_barrier(_einsum("dcj,djn->dcn", chunks, write))
    sources = lax.optimization_barrier(sources.transpose(1, 0, 2))

    a, b, a_rest, b_rest = jnp.real(decay), jnp.imag(decay), jnp.real(rest), jnp.imag(rest)

    def carry(pair, source):
        re, im = pair
        leaving = (
            a * re - b * im + (a_rest * re - b_rest * im + source[:, :states]),
            a * im + b * re + (a_rest * im + b_rest * re + source[:, states:]),
        )
        return leaving, jnp.concatenate(pair, axis=-1)

    (re, im), entering = lax.scan(carry, (jnp.real(h), jnp.imag(h)), sources)
    inputs = jnp.concatenate([chunks, entering.transpose(1, 0, 2)], axis=-1)
    y = _einsum("dcj,djt->dct", inputs, emit)
    return _time_major(y), lax.complex(re, im)


# One transpose per chunk plus a permutation of whole rows is several times faster on CPU than the direct transpose.
def _feature_major(x, chunk: int):
    """[block, D] -> [D, chunks, chunk]"""
    return lax.map(jnp.transpose, x.reshape(-1, chunk, x.shape[1])).transpose(1, 0, 2)


def _time_major(y):
    """[D, chunks, chunk] -> [block, D]"""
    return lax.map(jnp.transpose, y.transpose(1, 0, 2)).reshape(-1, y.shape[0])


def _packed(x, p, q, gamma, h0, resets, valid, return_state: bool):
    """Step by step with resets; states laid out [B, N, D] so that the vector lanes run over features."""
    batch, length, features = x.shape
    pad = -length % _PACKED_CHUNK
    p, q_re, q_im = p.T, jnp.real(q).T, jnp.imag(q).T
    gamma_re, gamma_im = jnp.real(gamma).T, jnp.imag(gamma).T

    def step(carry, inputs):
        (re, im), last = carry
        x_t, reset, keep = inputs
        re, im = (jnp.where(reset[:, None, None], 0.0, part) for part in (re, im))
        re, im = q_re * re - q_im * im + p * x_t[:, None], q_re * im + q_im * re
        if return_state:
            last = tuple(jnp.where(keep[:, None, None], new, old) for new, old in zip((re, im), last, strict=True))
        return ((re, im), last), jnp.sum(gamma_re * re - gamma_im * im, axis=1)

    @jax.checkpoint
    def chunk(carry, inputs):
        return lax.scan(step, carry, inputs)

    def chunks(a):  # [B, L, ...] -> [chunks, T, B, ...]; padding steps are not valid, so they never reach `last`
        a = jnp.pad(a, ((0, 0), (0, pad)) + ((0, 0),) * (a.ndim - 2))
        return jnp.moveaxis(a, 1, 0).reshape(-1, _PACKED_CHUNK, batch, *a.shape[2:])

    start = tuple(part.transpose(0, 2, 1) for part in (jnp.real(h0), jnp.imag(h0)))
    carry = (start, start if return_state else ())
    (_, last), y = lax.scan(chunk, carry, (chunks(x), chunks(resets), chunks(valid)))
    y = jnp.moveaxis(y.reshape(-1, batch, features)[:length], 0, 1)
    h = lax.complex(*last).transpose(0, 2, 1) if return_state else None
    return y, h
