r"""The complex EMA as it is usually written in JAX: what `reference.complex_ema` and the kernels are measured against.

All compute, per batch row and feature, over N complex states and from a zero state,

    h[t] = q h[t-1] + p x[t]                    y[t] = Re(sum_n gamma_n h[t, n])

`fft_convolution` unrolls the recurrence into a convolution over the whole length L,

    y[t] = sum_{j<=t} k[t-j] x[j]               k[j] = Re(sum_n gamma_n p_n q_n^j),   q^j = exp(j log q)

with every power formed on its own for all (D, N, L), and the convolution done as a product of real FFTs of at least 2L
points, a power of two, so that nothing wraps around.

`sequential_scan` runs the recurrence as it stands, one complex step after the other.

`associative_scan` joins pairs (a, b) = (q, p x) in a tree over time; with packed documents a = 0 where one begins,

    (a, b) then (c, d)  ->  (a c, c b + d)

Gradients are whatever JAX derives.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Complex64, Float32, Int

from reference.segments import state_resets


def fft_convolution(
    x: Float32[Array, "B L D"], p: Float32[Array, "D N"], q: Complex64[Array, "D N"], gamma: Complex64[Array, "D N"]
) -> Float32[Array, "B L D"]:
    """The EMA as one FFT convolution with a kernel as long as the sequence; q = 0 has no gradient here."""
    length = x.shape[1]
    points = 1 << (2 * length - 1).bit_length()
    steps = jnp.arange(length, dtype=jnp.float32).astype(q.dtype)
    powers = jnp.exp(jnp.log(q)[..., None] * steps)
    weights = gamma * p.astype(q.dtype)
    kernel = jnp.real(jnp.einsum("dn,dnl->dl", weights, powers, precision=lax.Precision.HIGHEST))
    spectrum = jnp.fft.rfft(x.transpose(0, 2, 1), n=points) * jnp.fft.rfft(kernel, n=points)
    return jnp.fft.irfft(spectrum, n=points)[..., :length].transpose(0, 2, 1)


def sequential_scan(
    x: Float32[Array, "B L D"], p: Float32[Array, "D N"], q: Complex64[Array, "D N"], gamma: Complex64[Array, "D N"]
) -> Float32[Array, "B L D"]:
    """The EMA as a scan over time with a complex state [B, D, N]."""

    def step(h, x_t):
        h = q * h + (p * x_t[..., None]).astype(q.dtype)
        return h, jnp.sum(jnp.real(gamma * h), axis=-1)

    start = jnp.zeros((x.shape[0], *q.shape), q.dtype)
    _, y = lax.scan(step, start, jnp.moveaxis(x, 1, 0))
    return jnp.moveaxis(y, 0, 1)


def associative_scan(
    x: Float32[Array, "B L D"],
    p: Float32[Array, "D N"],
    q: Complex64[Array, "D N"],
    gamma: Complex64[Array, "D N"],
    segment_ids: Int[Array, "B L"] | None = None,
) -> Float32[Array, "B L D"]:
    """The EMA as a parallel scan over time with all states in memory; packed documents without padding among them."""

    def then(left, right):
        return left[0] * right[0], right[0] * left[1] + right[1]

    inputs = (p * x[..., None]).astype(q.dtype)
    factors = jnp.broadcast_to(q, inputs.shape)
    if segment_ids is not None:
        factors = jnp.where(state_resets(segment_ids)[..., None, None], jnp.zeros_like(q), q)
    _, h = lax.associative_scan(then, (factors, inputs), axis=1)
    return jnp.sum(jnp.real(gamma * h), axis=-1)
