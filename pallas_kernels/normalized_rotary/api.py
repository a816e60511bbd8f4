r"""Public entry of normalized_rotary: contract, validation, implementations.

q, k = rotate(z / sqrt(mean(z^2) + eps) factors[i] + shift[i], positions),    i = 0, 1,    with z + bias for z
factors = (scale + scale_offset) scale_factor
"""

from jaxtyping import Array, Float, Float32, Int

import reference
from pallas_kernels import _checks as checks
from pallas_kernels._dispatch import Op, reference_implementation
from pallas_kernels._kernels import kernel_implementations
from pallas_kernels._settings import Implementation as ImplementationName
from pallas_kernels.normalized_rotary import tiles, vjp


def normalized_rotary(
    z: Float[Array, "B L H K"],
    scale: Float32[Array, "2 H K"],
    shift: Float32[Array, "2 H K"],
    bias: Float32[Array, "H K"] | None = None,
    *,
    positions: Int[Array, "*B L"],
    eps: float = 1e-5,
    base: float = 10000.0,
    interleaved: bool = False,
    scale_offset: float = 0.0,
    scale_factor: float = 1.0,
    implementation: ImplementationName = None,
) -> tuple[Float[Array, "B L H K"], Float[Array, "B L H K"]]:
    """Queries and keys from their shared projection: RMS norm of each head, an affine map and rotary embedding each
    (Megalodon, arXiv 2404.08801, section 3.3; RoFormer, arXiv 2104.09864).

    Args:
        z: shared projection, float32 or bfloat16; K is even.
        scale: factors of queries (0) and keys (1), once they are offset and scaled.
        shift: what is added after that.
        bias: of the projection, if z is without it.
        positions: of the tokens, one row for all [L] or one each [B, L].
        eps: added to the mean square.
        base: angle j turns by position base^(-2 j / K).
        interleaved: which features it turns: (2 j, 2 j + 1), else the half-split (j, j + K/2).
        scale_offset: added to `scale`.
        scale_factor: of that sum; 1 / sqrt(K) for both scales the scores by 1 / K.
        implementation: None (best available), a name, or a tuple of names tried in order.

    Returns:
        q, k in z.dtype, computed in float32 and rounded once.

    Raises:
        ValueError: wrong shape, odd K, eps or base not positive, offset or factor not finite, unknown implementation.
        TypeError: wrong dtype (float16 is refused), or a traced number.
        KernelUnavailable: a named implementation cannot run.
    """
    return OP(
        z, scale, shift, bias,
        positions=positions, eps=eps, base=base, interleaved=interleaved,
        scale_offset=scale_offset, scale_factor=scale_factor, implementation=implementation,
    )  # fmt: skip


def _check(
    z, scale, shift, bias=None, *, positions, eps=1e-5, base=10000.0, interleaved=False,
    scale_offset=0.0, scale_factor=1.0,
):  # fmt: skip
    op, sizes = "normalized_rotary", {"2": 2}
    checks.check_array(op, "z", z, ("B", "L", "H", "K"), checks.ACTIVATIONS, sizes)
    if z.shape[3] % 2:
        raise ValueError(f"{op}: head dim {z.shape[3]} is odd; features are turned in pairs.")
    for name, parameter in (("scale", scale), ("shift", shift)):
        checks.check_array(op, name, parameter, ("2", "H", "K"), checks.FLOAT32, sizes)
    if bias is not None:
        checks.check_array(op, "bias", bias, ("H", "K"), checks.FLOAT32, sizes)
    rows = ("L",) if getattr(positions, "ndim", None) == 1 else ("B", "L")
    checks.check_array(op, "positions", positions, rows, checks.INTEGER, sizes)
    checks.check_number(op, "eps", eps)
    checks.check_number(op, "base", base)
    checks.check_choice(op, "interleaved", interleaved, (False, True))
    checks.check_finite(op, "scale_offset", scale_offset)
    checks.check_finite(op, "scale_factor", scale_factor)


_TRITON, _INTERPRET = kernel_implementations(vjp.normalized_rotary, tiles.launches, tiles.refuse)
OP = Op("normalized_rotary", _check, (_TRITON, reference_implementation(reference.normalized_rotary), _INTERPRET))
