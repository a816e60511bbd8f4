r"""Public entry of chunked_attention: contract, validation, implementations.

o[i] = sum_j softmax_j(q[i] . k[j]) v[j]    over the keys j <= i of i's own chunk
"""

from typing import Literal

from jaxtyping import Array, Bool, Float, Int

import reference
from pallas_kernels import _checks as checks
from pallas_kernels._dispatch import Op, reference_implementation
from pallas_kernels._kernels import kernel_implementations
from pallas_kernels._settings import Implementation as ImplementationName
from pallas_kernels.chunked_attention import tiles, vjp


def chunked_attention(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L H K"],
    v: Float[Array, "B L H V"],
    *,
    chunk_size: int,
    mask: Bool[Array, "B L"] | None = None,
    segment_ids: Int[Array, "B L"] | None = None,
    precision: Literal["tf32"] | None = None,
    implementation: ImplementationName = None,
) -> Float[Array, "B L H V"]:
    """Causal softmax attention inside chunks of `chunk_size` (Megalodon, arXiv 2404.08801, section 3.3).

    Args:
        q: queries, float32 or bfloat16, already rotated; the scale is 1.
        k: keys, same head dim K as q.
        v: values; head dim V may differ from K.
        chunk_size: C. Without `segment_ids` the chunk grid starts at index 0.
        mask: True = valid. Masked keys are not attended; a query without an allowed key gives 0, in the backward too.
        segment_ids: packed documents; a query sees only its own run, and the chunk grid restarts at each run. Id 0 is
            padding and acts as mask False.
        precision: None: float32 products are float32. "tf32": let float32 inputs use TF32 tensor cores.
        implementation: None (best available), a name, or a tuple of names tried in order.

    Returns:
        o in q.dtype; softmax and accumulation are float32.

    Raises:
        ValueError: wrong shape, chunk_size not positive, unknown precision or implementation.
        TypeError: wrong dtype, or q, k, v of different dtypes; float16 is refused.
        KernelUnavailable: a named implementation cannot run.
    """
    return OP(
        q, k, v,
        chunk_size=chunk_size, mask=mask, segment_ids=segment_ids, precision=precision, implementation=implementation,
    )  # fmt: skip


def _check(q, k, v, *, chunk_size, mask=None, segment_ids=None, precision=None):
    op, sizes = "chunked_attention", {}
    checks.check_array(op, "q", q, ("B", "L", "H", "K"), checks.ACTIVATIONS, sizes)
    checks.check_array(op, "k", k, ("B", "L", "H", "K"), (q.dtype,), sizes)
    checks.check_array(op, "v", v, ("B", "L", "H", "V"), (q.dtype,), sizes)
    checks.check_positive(op, "chunk_size", chunk_size)
    checks.check_choice(op, "precision", precision, (None, "tf32"))
    checks.check_tokens(op, mask, segment_ids, sizes)


_TRITON, _INTERPRET = kernel_implementations(vjp.chunked_attention, tiles.launches, tiles.refuse)
OP = Op("chunked_attention", _check, (_TRITON, reference_implementation(reference.chunked_attention), _INTERPRET))
