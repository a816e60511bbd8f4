r"""Public entry of fused_linear: contract, validation, implementations.

y = act(x + x_bias) W^T + bias + residual,    act = silu or the identity
"""

from jaxtyping import Array, Float, Float32

import reference
from pallas_kernels import _checks as checks
from pallas_kernels._dispatch import Op, reference_implementation
from pallas_kernels._kernels import kernel_implementations
from pallas_kernels._settings import Implementation as ImplementationName
from pallas_kernels.fused_linear import tiles, vjp
from pallas_kernels.fused_linear.math import Activation


def fused_linear(
    x: Float[Array, "B L D"],
    weight: Float[Array, "O D"],
    bias: Float32[Array, " O"] | None = None,
    *,
    x_bias: Float32[Array, " D"] | None = None,
    residual: Float[Array, "B L O"] | None = None,
    activation: Activation = None,
    implementation: ImplementationName = None,
) -> Float[Array, "B L O"]:
    """A linear layer with an activation in front of it and a residual behind it.

    Args:
        x: float32 or bfloat16.
        weight: float32 or bfloat16, rounded to x.dtype for the products; its gradient is of its own dtype.
        bias: added to the product.
        x_bias: added to x in front of the activation: that of the layer that made x, if x is without it.
        residual: added at the end, in x.dtype.
        activation: None or "silu" (Swish, arXiv 1710.05941), of x + x_bias.
        implementation: None (best available), a name, or a tuple of names tried in order.

    Returns:
        y in x.dtype. Products have operands of x.dtype; they are summed in float32, where everything is added, and
        rounded once.

    Raises:
        ValueError: wrong shape, unknown activation or implementation.
        TypeError: wrong dtype (float16 is refused).
        KernelUnavailable: a named implementation cannot run.
    """
    return OP(
        x, weight, bias, x_bias=x_bias, residual=residual, activation=activation, implementation=implementation
    )  # fmt: skip


def _check(x, weight, bias=None, *, x_bias=None, residual=None, activation=None):
    op, sizes = "fused_linear", {}
    checks.check_array(op, "x", x, ("B", "L", "D"), checks.ACTIVATIONS, sizes)
    checks.check_array(op, "weight", weight, ("O", "D"), checks.ACTIVATIONS, sizes)
    for name, array, dim in (("bias", bias, "O"), ("x_bias", x_bias, "D")):
        if array is not None:
            checks.check_array(op, name, array, (dim,), checks.FLOAT32, sizes)
    if residual is not None:
        checks.check_array(op, "residual", residual, ("B", "L", "O"), (x.dtype,), sizes)
    checks.check_choice(op, "activation", activation, (None, "silu"))


_TRITON, _INTERPRET = kernel_implementations(vjp.fused_linear, tiles.launches, tiles.refuse)
OP = Op("fused_linear", _check, (_TRITON, reference_implementation(reference.fused_linear), _INTERPRET))
