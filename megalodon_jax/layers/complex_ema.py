r"""ComplexEMA as a module: parameters around `pallas_kernels.complex_ema`.

a = sigmoid(alpha), d = sigmoid(delta), phi[d, n] = n sigmoid(theta[d]) 2 pi / N,  n = 1 .. N
p = a          q = (1 - a d) e^(i phi)          gamma = (gamma_real + i gamma_imag) / sqrt(N)
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Complex64, Float, Float32, Int

from pallas_kernels import complex_ema

# Kept for importers of the existing JAX library; nothing here uses an FFT.
FFT_KERNEL_CHUNK = 4096

_FREQUENCY_CLIP = 1e-6


class Coefficients(NamedTuple):
    """p, q and gamma of the recurrence; those of several layers have one more axis in front."""

    p: Float32[Array, "*layers D N"]
    q: Complex64[Array, "*layers D N"]
    gamma: Complex64[Array, "*layers D N"]


class ComplexEMA(eqx.Module):
    """Multi-dimensional damped EMA with complex decay (Megalodon, arXiv 2404.08801, section 3.1)."""

    alpha: Float[Array, "D N 1"]
    delta: Float[Array, "D N 1"]
    theta: Float[Array, "D 1 1"]
    gamma_real: Float[Array, "D N"]
    gamma_imag: Float[Array, "D N"]
    omega: Float[Array, " D"]
    embed_dim: int = eqx.field(static=True)
    ndim: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(self, embed_dim: int, ndim: int, *, key):
        self.embed_dim, self.ndim, self.scale = embed_dim, ndim, math.sqrt(1.0 / ndim)
        alpha_key, delta_key, theta_key, gamma_key, omega_key = jax.random.split(key, 5)
        self.alpha = 0.2 * jax.random.normal(alpha_key, (embed_dim, ndim, 1))
        self.delta = 0.2 * jax.random.normal(delta_key, (embed_dim, ndim, 1))
        # Geometrically spaced frequencies, one per feature, in random order.
        steps = jnp.arange(1, embed_dim + 1, dtype=jnp.float32)
        frequencies = jnp.exp(-steps * (math.log(embed_dim) / embed_dim))
        frequencies = frequencies[jax.random.permutation(theta_key, embed_dim)]
        clipped = jnp.clip(frequencies, _FREQUENCY_CLIP, 1.0 - _FREQUENCY_CLIP)
        self.theta = jax.scipy.special.logit(clipped)[:, None, None]
        self.gamma_real = jax.random.normal(gamma_key, (embed_dim, ndim))
        self.gamma_imag = jnp.zeros((embed_dim, ndim))
        self.omega = 0.25 * jax.random.truncated_normal(omega_key, -4.0, 4.0, (embed_dim,))

    def _coeffs(self) -> Coefficients:
        """In float32 / complex64 whatever the dtype of the parameters."""
        alpha, delta, theta, *gamma = self._parameters()
        return self._formed(alpha, delta, jax.nn.sigmoid(theta), *gamma)

    def _parameters(self) -> tuple[Float32[Array, "..."], ...]:
        """What coefficients are made of."""
        arrays = (self.alpha, self.delta, self.theta, self.gamma_real, self.gamma_imag)
        return tuple(a.astype(jnp.float32) for a in arrays)

    def _formed(self, alpha, delta, frequency, gamma_real, gamma_imag) -> Coefficients:
        """From parameters, and sigmoid(theta) for theta."""
        alpha, delta, frequency = alpha[..., 0], delta[..., 0], frequency[..., 0]
        a, d = jax.nn.sigmoid(alpha), jax.nn.sigmoid(delta)
        wavelet = jnp.arange(1, self.ndim + 1, dtype=jnp.float32)
        phi = wavelet * frequency * (2.0 * math.pi / self.ndim)
        radius = 1.0 - a * d
        q = lax.complex(radius * jnp.cos(phi), radius * jnp.sin(phi))
        return Coefficients(a, q, lax.complex(gamma_real * self.scale, gamma_imag * self.scale))

    def __call__(
        self,
        x: Float[Array, "B L D"],
        h_init: Complex64[Array, "B D N"] | None = None,
        return_state: bool = False,
        mask: Bool[Array, "B L"] | None = None,
        *,
        segment_ids: Int[Array, "B L"] | None = None,
        coefficients: Coefficients | None = None,
    ) -> tuple[Float[Array, "B L D"], Complex64[Array, "B D N"] | None]:
        """y in x.dtype, and the final state if asked for (else None). Time-major, masked inputs enter as zero.

        `coefficients` are those of this layer, where they have been formed already.
        """
        p, q, gamma = self._coeffs() if coefficients is None else coefficients
        omega = self.omega.astype(jnp.float32)
        if not return_state:
            return complex_ema(x, p, q, gamma, omega, h0=h_init, mask=mask, segment_ids=segment_ids), None
        return complex_ema(x, p, q, gamma, omega, h0=h_init, mask=mask, segment_ids=segment_ids, return_state=True)


def stacked_coefficients(layers: Sequence[ComplexEMA]) -> Coefficients:
    """Those of layers of one shape, formed together: a few kernels in all instead of a few for each layer."""

    @jax.checkpoint
    def formed(parameters) -> Coefficients:
        alpha, delta, theta, *gamma = map(jnp.stack, zip(*parameters, strict=True))
        # Mere slices of the gradient of theta would be a kernel for each layer; a sigmoid's are all in one.
        stacked = lax.optimization_barrier((alpha, delta, jax.nn.sigmoid(theta), *gamma))
        return jax.vmap(layers[0]._formed)(*stacked)

    return formed([layer._parameters() for layer in layers])


def each_layer(stacked: Coefficients) -> list[Coefficients]:
    """The coefficients of every layer; their gradients are put together in one piece."""
    count = stacked.p.shape[0]
    parts = ((a[0] for a in lax.split(part, (1,) * count)) for part in stacked)
    return [Coefficients(*layer) for layer in zip(*parts, strict=True)]
