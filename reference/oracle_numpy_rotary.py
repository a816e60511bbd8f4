r"""The truth of normalized_rotary in float64 NumPy, one token and one head after the other.

n = z / sqrt(mean(z^2) + eps);  f = (scale + offset) factor;  u = n f + shift;  the pair (a, b) = (u[i], u[j]) becomes
the real and imaginary part of (a + i b) exp(i position base^(-2 m / K)) for m = 0 .. K/2 - 1.

adjoint    (da + i db) = (dq_a + i dq_b) exp(-i angle);  factor du n -> dscale;  du -> dshift;  dn = du f of both;
           dz = (dn - z (z . dn) / (K mean(z^2) + K eps)) / sqrt(mean(z^2) + eps);  dz -> dbias, z being z + bias
"""

import numpy as np


def _pairs(depth, interleaved):
    """(i, j) of every angle."""
    half = depth // 2
    return [(2 * m, 2 * m + 1) if interleaved else (m, m + half) for m in range(half)]


def _turned(u, position, base, interleaved, sign):
    depth, turned = len(u), np.empty(len(u))
    for m, (i, j) in enumerate(_pairs(depth, interleaved)):
        number = (u[i] + 1j * u[j]) * np.exp(sign * 1j * position * base ** (-2.0 * m / depth))
        turned[i], turned[j] = number.real, number.imag
    return turned


def _cells(z, positions):
    """Index of every token and head, and its position."""
    batch, length, heads, _ = z.shape
    positions = np.broadcast_to(positions, (batch, length))
    for b in range(batch):
        for t in range(length):
            for h in range(heads):
                yield (b, t, h), float(positions[b, t])


def normalized_rotary(
    z, scale, shift, bias=None, *, positions, eps=1e-5, base=10000.0, interleaved=False,
    scale_offset=0.0, scale_factor=1.0,
):  # fmt: skip
    """q, k [B, L, H, K] in float64."""
    z, scale, shift = (np.asarray(a, np.float64) for a in (z if bias is None else z + bias, scale, shift))
    factors = (scale + scale_offset) * scale_factor
    q, k = np.empty(z.shape), np.empty(z.shape)
    for cell, position in _cells(z, positions):
        n = z[cell] / np.sqrt(np.mean(z[cell] ** 2) + eps)
        for out, s, t in ((q, factors[0], shift[0]), (k, factors[1], shift[1])):
            out[cell] = _turned(n * s[cell[2]] + t[cell[2]], position, base, interleaved, 1)
    return q, k


def normalized_rotary_vjp(
    z, scale, shift, bias=None, *, positions, eps=1e-5, base=10000.0, interleaved=False,
    scale_offset=0.0, scale_factor=1.0, dq, dk,
):  # fmt: skip
    """Gradients of sum(q dq) + sum(k dk): dict over z, scale, shift and, if there is one, bias."""
    z, scale, shift, dq, dk = (
        np.asarray(a, np.float64) for a in (z if bias is None else z + bias, scale, shift, dq, dk)
    )
    factors = (scale + scale_offset) * scale_factor
    dz, dscale, dshift = np.empty(z.shape), np.zeros(scale.shape), np.zeros(shift.shape)
    for cell, position in _cells(z, positions):
        head, size = cell[2], z.shape[3]
        square = np.mean(z[cell] ** 2) + eps
        n, dn = z[cell] / np.sqrt(square), np.zeros(size)
        for i, cotangent in enumerate((dq, dk)):
            du = _turned(cotangent[cell], position, base, interleaved, -1)
            dscale[i, head] += scale_factor * du * n
            dshift[i, head] += du
            dn += du * factors[i, head]
        dz[cell] = (dn - z[cell] * np.dot(z[cell], dn) / (size * square)) / np.sqrt(square)
    gradients = {"z": dz, "scale": dscale, "shift": dshift}
    return gradients if bias is None else gradients | {"bias": dz.sum((0, 1))}
