r"""Powers of the EMA's decay q, accurate enough for memories of any length.

A chunked scan multiplies its state by q^T once per chunk, always by the same number, so a relative error e of q^T
grows to e / (1 - |q|^T) in the state: with |q| = 0.99999 and T = 32 three thousandfold. Squaring q repeatedly in
float32 would give e of several rounding units, and even the correctly rounded q^T gives half a unit. The powers are
therefore formed in float64 (a handful of products per state, whatever the length), and q^T is returned together with
what float32 leaves out of it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex64


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def decay_powers(
    q: Complex64[Array, "D N"], exponent: int
) -> tuple[Complex64[Array, "D N P"], Complex64[Array, "D N"]]:
    """q^0 .. q^exponent, and what float32 leaves out of the last one: q^exponent = powers[..., -1] + rest.

    Derivatives are d q^j = j q^(j-1) dq; the rest is a correction of the value and has none.
    """
    with jax.enable_x64(True):
        square = q.astype(jnp.complex128)
        powers = jnp.ones_like(square)[..., None]
        while powers.shape[-1] <= exponent:
            powers = jnp.concatenate([powers, powers * square[..., None]], axis=-1)
            square = square * square
        powers = powers[..., : exponent + 1]
        rounded = powers.astype(jnp.complex64)
        rest = (powers[..., -1] - rounded[..., -1].astype(jnp.complex128)).astype(jnp.complex64)
    return rounded, rest


@decay_powers.defjvp
def _decay_powers_jvp(exponent, primals, tangents):
    (q,), (dq,) = primals, tangents
    powers, rest = decay_powers(q, exponent)
    exponents = jnp.arange(1, exponent + 1, dtype=jnp.float32).astype(q.dtype)
    slopes = exponents * powers[..., :-1] * dq[..., None]
    return (powers, rest), (jnp.pad(slopes, ((0, 0), (0, 0), (1, 0))), jnp.zeros_like(rest))
