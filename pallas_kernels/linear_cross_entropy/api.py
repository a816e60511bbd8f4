r"""Public entry of linear_cross_entropy: contract, validation, implementations.

z = h W^T,    losses_t = factors_t (logsumexp(z_t) - z_t[targets_t]),    and the gradients of their sum in h and W
"""

import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from pallas_kernels import _checks as checks
from pallas_kernels._dispatch import Op, reference_implementation
from pallas_kernels._kernels import kernel_implementations
from pallas_kernels._settings import Implementation as ImplementationName
from pallas_kernels.linear_cross_entropy import launch, tiles


def linear_cross_entropy(
    hidden: Float[Array, "T D"],
    weight: Float[Array, "V D"],
    targets: Int32[Array, " T"],
    factors: Float32[Array, " T"],
    *,
    so_far: Float32[Array, "V D"] | None = None,
    implementation: ImplementationName = None,
) -> tuple[Float32[Array, " T"], Float[Array, "T D"], Float32[Array, "V D"]]:
    """Weighted cross-entropies of hidden @ weight.T, and the gradients of their sum, with one reading of the logits.

    A sum's gradient is known before its cotangent is, up to that one factor. There is no derivative of the results:
    put the call into the rules of a custom_vjp, and multiply by the cotangent there.

    Args:
        hidden: float32 or bfloat16.
        weight: in the dtype of `hidden`.
        targets: in [0, V) where the factor is not 0. In compiled code, where it cannot be checked, the loss of a token
            with another target is undefined.
        factors: what each token's loss counts. A token of factor 0 adds nothing, whatever its row of `hidden` holds.
        so_far: added to the gradient of the weight: that of other tokens. Its memory may be used for the sum.
        implementation: None (best available), a name, or a tuple of names tried in order.

    Returns:
        losses, factors included; the gradients of their sum in hidden (in its dtype) and in weight (float32, with
        `so_far`). Products have operands of the dtype of hidden and are summed in float32; all else is float32. What
        is kept of the logits in between is rounded to the dtype of hidden.

    Raises:
        ValueError: wrong shape, a target out of range, unknown implementation.
        TypeError: wrong dtype (float16 is refused); the results are differentiated.
        KernelUnavailable: a named implementation cannot run.
    """
    return OP(hidden, weight, targets, factors, so_far=so_far, implementation=implementation)


def _check(hidden, weight, targets, factors, *, so_far=None):
    op, sizes = "linear_cross_entropy", {}
    checks.check_array(op, "hidden", hidden, ("T", "D"), checks.ACTIVATIONS, sizes)
    checks.check_array(op, "weight", weight, ("V", "D"), (hidden.dtype,), sizes)
    checks.check_array(op, "targets", targets, ("T",), checks.INT32, sizes)
    checks.check_array(op, "factors", factors, ("T",), checks.FLOAT32, sizes)
    if so_far is not None:
        checks.check_array(op, "so_far", so_far, ("V", "D"), checks.FLOAT32, sizes)
    if checks.is_known(targets) and checks.is_known(factors):
        counted = np.asarray(targets)[np.asarray(factors) != 0]
        if counted.size:
            checks.check_range(op, "targets (where factors are not 0)", counted, 0, weight.shape[0] - 1)


_TRITON, _INTERPRET = kernel_implementations(launch.linear_cross_entropy, tiles.launches, tiles.refuse, token_axis=0)
OP = Op("linear_cross_entropy", _check, (_TRITON, reference_implementation(launch.by_xla), _INTERPRET))
