r"""Public entry of timestep_norm: contract, validation, implementations.

y[t] = (x[t] - mean[t]) / sqrt(var[t] + eps) * (1 + weight) + bias,   mean, var over all valid tokens up to t
"""

from typing import Literal, overload

from jaxtyping import Array, Bool, Float, Float32, Int, Int32

import reference
from pallas_kernels import _checks as checks
from pallas_kernels._dispatch import Op, reference_implementation
from pallas_kernels._kernels import kernel_implementations
from pallas_kernels._settings import Implementation as ImplementationName
from pallas_kernels.timestep_norm import tiles, vjp

_STATISTICS = ("token_mean", "all_features")

State = tuple[Int32[Array, " B"], Float32[Array, "B G"], Float32[Array, "B G"]]


@overload
def timestep_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    num_groups: int,
    eps: float = 1e-5,
    state: State | None = None,
    mask: Array | None = None,
    segment_ids: Array | None = None,
    statistics: str = "token_mean",
    return_state: Literal[False] = False,
    implementation: ImplementationName = None,
) -> Array: ...
@overload
def timestep_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    num_groups: int,
    eps: float = 1e-5,
    state: State | None = None,
    mask: Array | None = None,
    segment_ids: Array | None = None,
    statistics: str = "token_mean",
    return_state: Literal[True],
    implementation: ImplementationName = None,
) -> tuple[Array, State]: ...
def timestep_norm(
    x: Float[Array, "B L D"],
    weight: Float32[Array, " D"] | None = None,
    bias: Float32[Array, " D"] | None = None,
    *,
    num_groups: int,
    eps: float = 1e-5,
    state: State | None = None,
    mask: Bool[Array, "B L"] | None = None,
    segment_ids: Int[Array, "B L"] | None = None,
    statistics: str = "token_mean",
    return_state: bool = False,
    implementation: ImplementationName = None,
) -> Float[Array, "B L D"] | tuple[Float[Array, "B L D"], State]:
    """Cumulative group normalisation over time (Megalodon, arXiv 2404.08801, section 3.2).

    Args:
        x: input, float32 or bfloat16; statistics are float32.
        weight: effective scale is 1 + weight; None for 1.
        bias: None for 0.
        num_groups: number G of contiguous feature groups; divides D.
        eps: added to the variance.
        state: (count [B] int32, mean [B, G], var [B, G]) of what came before; None for (0, 0, 1).
        mask: True = valid. Masked positions do not update the statistics; they are normalised with the statistics as
            they stand ("token_mean") or give 0 ("all_features").
        segment_ids: packed documents; every run but the first restarts from the fresh state, id 0 is padding.
        statistics: "token_mean": variance over time of the group mean, the prior variance counting as one observation
            while the count is 0, floor 1e-6 (megalodon-hf); "all_features": within-group variance included, no prior,
            no floor (original release).
        return_state: also return the state after the last valid token.
        implementation: None (best available), a name, or a tuple of names tried in order.

    Returns:
        y in x.dtype, and with `return_state` also the new state.

    Raises:
        ValueError: wrong shape, D not divisible by num_groups, eps not positive, unknown statistics or implementation.
        TypeError: wrong dtype (float16 is refused), or a traced eps.
        KernelUnavailable: a named implementation cannot run.
    """
    return OP(
        x, weight, bias,
        num_groups=num_groups, eps=eps, state=state, mask=mask, segment_ids=segment_ids, statistics=statistics,
        return_state=return_state, implementation=implementation,
    )  # fmt: skip


def _check(
    x, weight=None, bias=None, *, num_groups, eps=1e-5, state=None, mask=None, segment_ids=None,
    statistics="token_mean", return_state=False,
):  # fmt: skip
    op, sizes = "timestep_norm", {}
    checks.check_array(op, "x", x, ("B", "L", "D"), checks.ACTIVATIONS, sizes)
    checks.check_positive(op, "num_groups", num_groups)
    if x.shape[2] % num_groups:
        raise ValueError(f"{op}: {x.shape[2]} features are not divisible by num_groups={num_groups}.")
    checks.check_number(op, "eps", eps)
    checks.check_choice(op, "statistics", statistics, _STATISTICS)
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None:
            checks.check_array(op, name, parameter, ("D",), checks.FLOAT32, sizes)
    if state is not None:
        if not isinstance(state, tuple) or len(state) != 3:
            raise TypeError(f"{op}: state must be a tuple (count, mean, var), got {type(state).__name__}.")
        sizes["G"] = num_groups
        checks.check_array(op, "state count", state[0], ("B",), checks.INT32, sizes)
        checks.check_array(op, "state mean", state[1], ("B", "G"), checks.FLOAT32, sizes)
        checks.check_array(op, "state var", state[2], ("B", "G"), checks.FLOAT32, sizes)
    checks.check_tokens(op, mask, segment_ids, sizes)


_TRITON, _INTERPRET = kernel_implementations(vjp.timestep_norm, tiles.launches, tiles.refuse)
OP = Op("timestep_norm", _check, (_TRITON, reference_implementation(reference.timestep_norm), _INTERPRET))
