"""Attention of queries and keys that are made from a shared projection: two ops, one call.

The projection is normalised and turned in a pass of its own. Inside the attention kernels that would be done again for
each tile of keys that a block of queries walks over; docs/ops/normalized_rotary.md has the bytes of both.
"""

from typing import Literal

from jaxtyping import Array, Bool, Float, Float32, Int

from pallas_kernels import _checks as checks
from pallas_kernels._settings import Implementation
from pallas_kernels.chunked_attention.api import chunked_attention
from pallas_kernels.normalized_rotary.api import normalized_rotary
from reference.segments import chunk_positions


def normalized_rotary_attention(
    z: Float[Array, "B L H K"],
    v: Float[Array, "B L H V"],
    scale: Float32[Array, "2 H K"],
    shift: Float32[Array, "2 H K"],
    *,
    chunk_size: int,
    positions: Int[Array, "*B L"] | None = None,
    eps: float = 1e-5,
    base: float = 10000.0,
    interleaved: bool = False,
    scale_offset: float = 0.0,
    scale_factor: float = 1.0,
    mask: Bool[Array, "B L"] | None = None,
    segment_ids: Int[Array, "B L"] | None = None,
    precision: Literal["tf32"] | None = None,
    implementation: Implementation = None,
) -> Float[Array, "B L H V"]:
    """`chunked_attention` of the q and k of `normalized_rotary`; arguments and errors as there.

    `positions` None: those inside the chunk, with `segment_ids` that of the document. As attention stays inside chunks
    and depends on differences of positions alone, any others that count on give the same. A cache needs the keys: call
    the two ops one after the other then.
    """
    op, sizes = "normalized_rotary_attention", {}
    checks.check_array(op, "z", z, ("B", "L", "H", "K"), checks.ACTIVATIONS, sizes)
    checks.check_positive(op, "chunk_size", chunk_size)
    checks.check_tokens(op, mask, segment_ids, sizes)
    if positions is None:
        positions = chunk_positions(z.shape[1], chunk_size, segment_ids)
    q, k = normalized_rotary(
        z, scale, shift,
        positions=positions, eps=eps, base=base, interleaved=interleaved,
        scale_offset=scale_offset, scale_factor=scale_factor, implementation=implementation,
    )  # fmt: skip
    return chunked_attention(
        q, k, v,
        chunk_size=chunk_size, mask=mask, segment_ids=segment_ids, precision=precision, implementation=implementation,
    )  # fmt: skip
