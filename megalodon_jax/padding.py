"""Batches of rows of different lengths."""

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from reference.segments import take_rows


def bucket_length(length: int, buckets: Sequence[int] | None = None) -> int:
    """The smallest bucket that holds `length` tokens; with None buckets are the powers of two.

    Raises:
        ValueError: no bucket is large enough.
    """
    if buckets is None:
        return 1 << max(length - 1, 0).bit_length()
    fitting = [bucket for bucket in buckets if bucket >= length]
    if not fitting:
        raise ValueError(f"no bucket holds {length} tokens; the largest of {list(buckets)} is too small")
    return min(fitting)


def pad_batch(
    rows: Sequence[Sequence[int] | np.ndarray | jax.Array],
    *,
    buckets: Sequence[int] | None = None,
    side: Literal["left", "right"] = "left",
    pad_token_id: int | None = None,
) -> tuple[Int32[Array, "B L"], Bool[Array, "B L"]]:
    """Token ids and attention mask of rows of different lengths, as long as the bucket of the longest one.

    Callers with many lengths compile once for each bucket. `generate` and calls with a cache take either side and give
    what each row gives alone. A call without takes "right": there nothing sees the padding, and chunks begin where the
    row does.

    Args:
        rows: token ids of each row.
        buckets: lengths to choose from, powers of two if None.
        side: where the padding stands.
        pad_token_id: what it holds, 0 if None: any token, it is never looked at.

    Raises:
        ValueError: no rows, a row without tokens or not of one dimension, unknown side, no bucket large enough, a token
            id that is negative or does not fit int32.
        TypeError: token ids that are no integers.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side must be 'left' or 'right', got {side!r}")
    arrays = [np.asarray(row) for row in rows]
    if not arrays or any(row.ndim != 1 or row.size == 0 for row in arrays):
        raise ValueError(f"rows must be sequences of at least one token id, got shapes {[row.shape for row in arrays]}")
    if not all(np.issubdtype(row.dtype, np.integer) for row in arrays):
        raise TypeError(f"rows must be of integers, got {sorted({row.dtype.name for row in arrays})}")
    pad_token_id = 0 if pad_token_id is None else pad_token_id
    if any(row.min() < 0 or row.max() >= 2**31 for row in (*arrays, np.asarray([pad_token_id]))):
        raise ValueError("token ids, and pad_token_id, must be in [0, 2^31)")
    length = bucket_length(max(map(len, arrays)), buckets)
    ids, mask = np.full((len(arrays), length), pad_token_id, np.int32), np.zeros((len(arrays), length), bool)
    for number, row in enumerate(arrays):
        place = slice(length - len(row), length) if side == "left" else slice(len(row))
        ids[number, place], mask[number, place] = row, True
    return jnp.asarray(ids), jnp.asarray(mask)


def tokens_first(
    ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
) -> tuple[Int[Array, "B L"], Bool[Array, "B L"], Callable[[jax.Array], jax.Array]]:
    """The tokens of each row (mask True) moved to its beginning, the mask of that, and what moves [B, L, ...] back."""
    if ids.shape[1] == 1:
        return ids, mask, lambda a: a
    order = jnp.argsort(~mask, axis=1, stable=True)
    back = jnp.argsort(order, axis=1)

    ids, mask = (take_rows(a, order) for a in (ids, mask))
    return ids, mask, lambda a: take_rows(a, back)
