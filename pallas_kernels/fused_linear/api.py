r"""Public entry of fused_linear: contract, validation, implementations.

y = a W^T + bias + residual,    a = act(x + x_bias) silu(gate + gate_bias),    act = silu or the identity
"""

from typing import TypeVar

from jaxtyping import Array, Float, Float32

import reference
from pallas_kernels import _checks as checks
from pallas_kernels._dispatch import Op, reference_implementation
from pallas_kernels._kernels import kernel_implementations
from pallas_kernels._settings import Implementation as ImplementationName
from pallas_kernels.fused_linear import tiles, vjp
from pallas_kernels.fused_linear.math import Activation

Weights = TypeVar("Weights", Array, tuple[Array, ...])


def fused_linear(
    x: Float[Array, "B L D"],
    weight: Weights,
    bias: Array | tuple[Array | None, ...] | None = None,
    *,
    x_bias: Float32[Array, " D"] | None = None,
    gate: Float[Array, "B L D"] | None = None,
    gate_bias: Float32[Array, " D"] | None = None,
    residual: Array | tuple[Array | None, ...] | None = None,
    activation: Activation = None,
    rounded: Array | tuple[Array | None, ...] | None = None,
    implementation: ImplementationName = None,
) -> Weights:
    """A linear layer, or several of one x, with an activation or a gate in front and a residual behind.

    Several run as one: x is read once for all of them, and so is what its gradient is made of.

    Args:
        x: float32 or bfloat16.
        weight: [O, D] float32 or bfloat16, rounded to x.dtype for the products; its gradient is of its own dtype. A
            tuple for several layers: then `bias`, `residual` and `rounded` are None or tuples of as many, in which None
            stands for a layer without it.
        bias: [O] float32, added to the product.
        x_bias: added to x in front of the activation: that of the layer that made x, if x is without it.
        gate: what comes out of the activation is times silu(gate + gate_bias); in x.dtype.
        gate_bias: that of the layer that made the gate, if the gate is without it.
        residual: [B, L, O], added at the end, in x.dtype.
        activation: None or "silu" (Swish, arXiv 1710.05941), of x + x_bias.
        rounded: [O, D], the weight in x.dtype, if the caller has it (`round_weights`): it is multiplied with, and has
            no gradient; that of `weight` is as without it. It is taken on trust, and not looked at by "xla".
        implementation: None (best available), a name, or a tuple of names tried in order.

    Returns:
        y [B, L, O] in x.dtype, or a tuple of them. Products have operands of x.dtype; they are summed in float32, where
        everything is added, and rounded once.

    Raises:
        ValueError: wrong shape, a tuple of another length than that of the weights, a bias without its gate, unknown
            activation or implementation.
        TypeError: wrong dtype (float16 is refused).
        KernelUnavailable: a named implementation cannot run.
    """
    return OP(
        x, weight, bias, x_bias=x_bias, gate=gate, gate_bias=gate_bias, residual=residual, activation=activation,
        rounded=rounded, implementation=implementation,
    )  # fmt: skip


def _check(
    x, weight, bias=None, *, x_bias=None, gate=None, gate_bias=None, residual=None, activation=None, rounded=None
):
    op, sizes = "fused_linear", {}
    checks.check_array(op, "x", x, ("B", "L", "D"), checks.ACTIVATIONS, sizes)
    parts = {
        "bias": (bias, ("O",), checks.FLOAT32),
        "residual": (residual, ("B", "L", "O"), (x.dtype,)),
        "rounded": (rounded, ("O", "D"), (x.dtype,)),
    }
    _check_layers(op, weight, parts, sizes)
    if gate is not None:
        checks.check_array(op, "gate", gate, ("B", "L", "D"), (x.dtype,), sizes)
    elif gate_bias is not None:
        raise ValueError(f"{op}: gate_bias is for a gate; give that too.")
    for name, array in (("x_bias", x_bias), ("gate_bias", gate_bias)):
        if array is not None:
            checks.check_array(op, name, array, ("D",), checks.FLOAT32, sizes)
    checks.check_choice(op, "activation", activation, (None, "silu"))


def _check_layers(op: str, weight, parts, sizes: dict[str, int]) -> None:
    """Each weight, and those of the other parts that there are: (what was given, its axes, its dtypes) by name."""
    if isinstance(weight, tuple) and not weight:
        raise ValueError(f"{op}: give at least one weight.")
    each = lambda part: part if isinstance(part, tuple) else (part,)  # noqa: E731
    of_layer = [f"[{number}]" if isinstance(weight, tuple) else "" for number in range(len(each(weight)))]
    own = [dict(sizes) for _ in of_layer]
    for number, array in enumerate(each(weight)):
        checks.check_array(op, f"weight{of_layer[number]}", array, ("O", "D"), checks.ACTIVATIONS, own[number])
    for name, (part, dims, dtypes) in parts.items():
        if part is not None and _form(part) != _form(weight):
            raise ValueError(
                f"{op}: weight is {_form(weight)}, so {name} must be None or {_form(weight)}, got {_form(part)}."
            )
        for number, array in enumerate(each(part)):
            if array is not None:
                checks.check_array(op, f"{name}{of_layer[number]}", array, dims, dtypes, own[number])


def _form(part) -> str:
    if isinstance(part, tuple):
        return f"a tuple of {len(part)}"
    return "an array" if hasattr(part, "shape") else f"a {type(part).__name__}"


_TRITON, _INTERPRET = kernel_implementations(vjp.fused_linear, tiles.launches, tiles.refuse)
OP = Op("fused_linear", _check, (_TRITON, reference_implementation(reference.fused_linear), _INTERPRET))
