r"""Public entry of complex_ema: contract, validation, implementations.

h[t] = q h[t-1] + p x[t]                    y[t] = Re(sum_n gamma_n h[t, n]) + omega x[t]
"""

from typing import Literal, overload

from jaxtyping import Array, Bool, Complex64, Float, Float32, Int

import reference
from pallas_kernels import _checks as checks
from pallas_kernels._dispatch import Op, reference_implementation
from pallas_kernels._kernels import kernel_implementations
from pallas_kernels._settings import Implementation as ImplementationName
from pallas_kernels.complex_ema import tiles, vjp


@overload
def complex_ema(
    x: Array,
    p: Array,
    q: Array,
    gamma: Array,
    omega: Array | None = None,
    *,
    h0: Array | None = None,
    mask: Array | None = None,
    segment_ids: Array | None = None,
    return_state: Literal[False] = False,
    implementation: ImplementationName = None,
) -> Array: ...
@overload
def complex_ema(
    x: Array,
    p: Array,
    q: Array,
    gamma: Array,
    omega: Array | None = None,
    *,
    h0: Array | None = None,
    mask: Array | None = None,
    segment_ids: Array | None = None,
    return_state: Literal[True],
    implementation: ImplementationName = None,
) -> tuple[Array, Array]: ...
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
    implementation: ImplementationName = None,
) -> Float[Array, "B L D"] | tuple[Float[Array, "B L D"], Complex64[Array, "B D N"]]:
    """Complex exponential moving average over time (Megalodon, arXiv 2404.08801, equation 2).

    Args:
        x: input, float32 or bfloat16; the recurrence runs in float32.
        p: input weight of every state.
        q: decay of every state; exact for any |q| < 1, q = 0 and real q included.
        gamma: output weight of every state.
        omega: weight of the skip connection, None for no skip.
        h0: state before the first step, None for zero.
        mask: True = valid. Masked inputs enter as zero, skip included; the state still decays and y is still emitted.
        segment_ids: packed documents. A maximal stretch of equal ids is a run; every run but the first starts from
            state zero, the first continues h0. Id 0 is padding and acts as mask False.
        return_state: also return the state after the last step; with `segment_ids` the state after the last valid
            token (h0 for a row that has none).
        implementation: None (best available), a name, or a tuple of names tried in order.

    Returns:
        y in x.dtype, and with `return_state` also h in complex64.

    Raises:
        ValueError: wrong shape, empty axis, more than 2^31 elements, unknown implementation.
        TypeError: wrong dtype; float16 is refused.
        KernelUnavailable: a named implementation cannot run.
    """
    return OP(
        x, p, q, gamma, omega,
        h0=h0, mask=mask, segment_ids=segment_ids, return_state=return_state, implementation=implementation,
    )  # fmt: skip


def _check(x, p, q, gamma, omega=None, *, h0=None, mask=None, segment_ids=None, return_state=False):
    op, sizes = "complex_ema", {}
    checks.check_array(op, "x", x, ("B", "L", "D"), checks.ACTIVATIONS, sizes)
    checks.check_array(op, "p", p, ("D", "N"), checks.FLOAT32, sizes)
    checks.check_array(op, "q", q, ("D", "N"), checks.COMPLEX64, sizes)
    checks.check_array(op, "gamma", gamma, ("D", "N"), checks.COMPLEX64, sizes)
    if omega is not None:
        checks.check_array(op, "omega", omega, ("D",), checks.FLOAT32, sizes)
    if h0 is not None:
        checks.check_array(op, "h0", h0, ("B", "D", "N"), checks.COMPLEX64, sizes)
    checks.check_tokens(op, mask, segment_ids, sizes)


_TRITON, _INTERPRET = kernel_implementations(vjp.complex_ema, tiles.launches, tiles.refuse)
OP = Op("complex_ema", _check, (_TRITON, reference_implementation(reference.complex_ema), _INTERPRET))
