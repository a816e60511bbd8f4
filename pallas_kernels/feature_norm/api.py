r"""Public entry of feature_norm: contract, validation, implementations.

y = (x - mean) / sqrt(mean((x - mean)^2) + eps) gain + bias     centred: layer norm
y = x / sqrt(mean(x^2) + eps) gain + bias                       not centred: RMS norm
"""

from jaxtyping import Array, Float, Float32

import reference
from pallas_kernels import _checks as checks
from pallas_kernels._dispatch import Op, reference_implementation
from pallas_kernels._kernels import kernel_implementations
from pallas_kernels._settings import Implementation as ImplementationName
from pallas_kernels.feature_norm import tiles, vjp


def feature_norm(
    x: Float[Array, "B L D"],
    weight: Float32[Array, " D"] | None = None,
    bias: Float32[Array, " D"] | None = None,
    *,
    centred: bool,
    minus_one: bool = False,
    eps: float = 1e-5,
    implementation: ImplementationName = None,
) -> Float[Array, "B L D"]:
    """Normalisation of every token over its features: layer norm (Ba et al., arXiv 1607.06450), or RMS norm (Zhang and
    Sennrich, arXiv 1910.07467).

    Args:
        x: float32 or bfloat16.
        weight: gain of each feature; 1 if None.
        bias: what is added after that.
        centred: subtract the mean of the features first: layer norm. Else RMS norm.
        minus_one: the gain is weight + 1.
        eps: added to the mean square.
        implementation: None (best available), a name, or a tuple of names tried in order.

    Returns:
        y in x.dtype, computed in float32 and rounded once.

    Raises:
        ValueError: wrong shape, eps not positive, unknown implementation.
        TypeError: wrong dtype (float16 is refused), or a traced eps.
        KernelUnavailable: a named implementation cannot run.
    """
    return OP(x, weight, bias, centred=centred, minus_one=minus_one, eps=eps, implementation=implementation)


def _check(x, weight=None, bias=None, *, centred, minus_one=False, eps=1e-5):
    op, sizes = "feature_norm", {}
    checks.check_array(op, "x", x, ("B", "L", "D"), checks.ACTIVATIONS, sizes)
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            checks.check_array(op, name, parameter, ("D",), checks.FLOAT32, sizes)
    checks.check_choice(op, "centred", centred, (False, True))
    checks.check_choice(op, "minus_one", minus_one, (False, True))
    checks.check_number(op, "eps", eps)


_TRITON, _INTERPRET = kernel_implementations(vjp.feature_norm, tiles.launches, tiles.refuse)
OP = Op("feature_norm", _check, (_TRITON, reference_implementation(reference.feature_norm), _INTERPRET))
