r"""Public entry of chunked_attention: contract, validation, implementations.

o[i] = sum_j softmax_j(q[i] . k[j]) v[j]    over the keys j <= i of i's own chunk, cached ones included

With a gate  o[i] silu(gate[i] + gate_bias),  with an activation  silu(v[j] + v_bias) for v[j]
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Float32, Int, PRNGKeyArray

import reference
from pallas_kernels import _checks as checks
from pallas_kernels._dispatch import Op, reference_implementation
from pallas_kernels._kernels import kernel_implementations
from pallas_kernels._settings import Implementation as ImplementationName
from pallas_kernels.chunked_attention import tiles, vjp
from reference.dropout import DROPOUT_MODES, DropoutMode


def chunked_attention(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L H K"],
    v: Float[Array, "B L H V"],
    *,
    chunk_size: int,
    mask: Bool[Array, "B L"] | None = None,
    segment_ids: Int[Array, "B L"] | None = None,
    cached_k: Float[Array, "B S H K"] | None = None,
    cached_v: Float[Array, "B S H V"] | None = None,
    cached_length: Int[Array, " B"] | None = None,
    v_activation: Literal["silu"] | None = None,
    v_bias: Float32[Array, "H V"] | None = None,
    gate: Float[Array, "B L H V"] | None = None,
    gate_bias: Float32[Array, "H V"] | None = None,
    precision: Literal["tf32"] | None = None,
    softmax_dtype: DTypeLike = jnp.float32,
    dropout_rate: float = 0.0,
    dropout_key: PRNGKeyArray | None = None,
    dropout_mode: DropoutMode = "post_softmax",
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
        cached_k, cached_v, cached_length: keys and values of the current chunk from before these tokens, oldest first,
            and how many of the S are there (the others may hold anything; at most min(S, chunk_size), in traced code
            cut off there): the first cached_length tokens of the first chunk, which ends chunk_size - cached_length
            tokens into this call. The first run continues it, later runs do not. Gradients with a cache are those of
            the reference.
        v_activation, v_bias: "silu": values are silu(v + v_bias), formed in float32, with no pass over memory for it.
            `cached_v` holds values, not what they are made of.
        gate, gate_bias: the result is times silu(gate + gate_bias), likewise. A gate that is NaN makes its own result
            NaN, and gradients of what that is made of, for a query without an allowed key too.
        precision: None: float32 products are float32. "tf32": let float32 inputs use TF32 tensor cores.
        softmax_dtype: of scores, softmax and sums; other than float32 on implementation "xla" alone.
        dropout_rate, dropout_key: probability with which a softmax weight is dropped, and what draws it (needed unless
            the rate is 0); on implementation "xla" alone.
        dropout_mode: "post_softmax" drops weights and rescales the others; "dropkey" takes pairs of query and key out
            of the softmax.
        implementation: None (best available), a name, or a tuple of names tried in order.

    Returns:
        o in q.dtype.

    Raises:
        ValueError: wrong shape, chunk_size not positive, part of a cache, v_bias without v_activation or gate_bias
            without gate, cached_length out of range, unknown v_activation, precision, dropout_mode or implementation,
            dropout_rate outside [0, 1] or without a key.
        TypeError: wrong dtype, or q, k, v of different dtypes; float16 is refused.
        KernelUnavailable: a named implementation cannot run.
    """
    return OP(
        q, k, v,
        chunk_size=chunk_size, mask=mask, segment_ids=segment_ids,
        cached_k=cached_k, cached_v=cached_v, cached_length=cached_length,
        v_activation=v_activation, v_bias=v_bias, gate=gate, gate_bias=gate_bias,
        precision=precision, softmax_dtype=softmax_dtype, dropout_rate=dropout_rate, dropout_key=dropout_key,
        dropout_mode=dropout_mode, implementation=implementation,
    )  # fmt: skip


def _check(
    q, k, v, *, chunk_size, mask=None, segment_ids=None, cached_k=None, cached_v=None, cached_length=None,
    v_activation=None, v_bias=None, gate=None, gate_bias=None,
    precision=None, softmax_dtype=jnp.float32, dropout_rate=0.0, dropout_key=None, dropout_mode="post_softmax",
):  # fmt: skip
    op, sizes = "chunked_attention", {}
    checks.check_array(op, "q", q, ("B", "L", "H", "K"), checks.ACTIVATIONS, sizes)
    checks.check_array(op, "k", k, ("B", "L", "H", "K"), (q.dtype,), sizes)
    checks.check_array(op, "v", v, ("B", "L", "H", "V"), (q.dtype,), sizes)
    checks.check_positive(op, "chunk_size", chunk_size)
    checks.check_choice(op, "precision", precision, (None, "tf32"))
    if softmax_dtype is None or not jnp.issubdtype(softmax_dtype, jnp.floating):
        raise TypeError(f"{op}: softmax_dtype must be a floating dtype, got {softmax_dtype!r}.")
    if not isinstance(dropout_rate, (int, float)) or not 0.0 <= dropout_rate <= 1.0:
        raise ValueError(f"{op}: dropout_rate must be a Python number in [0, 1], got {dropout_rate!r}.")
    checks.check_choice(op, "dropout_mode", dropout_mode, DROPOUT_MODES)
    if dropout_rate and dropout_key is None:
        raise ValueError(f"{op}: dropout_rate {dropout_rate} needs dropout_key, a jax.random.key.")
    checks.check_tokens(op, mask, segment_ids, sizes)
    if gate is not None:
        checks.check_array(op, "gate", gate, ("B", "L", "H", "V"), (q.dtype,), sizes)
    checks.check_choice(op, "v_activation", v_activation, (None, "silu"))
    for name, bias, of, what in (
        ("v_bias", v_bias, "v_activation", v_activation), ("gate_bias", gate_bias, "gate", gate),
    ):  # fmt: skip
        if bias is not None and what is None:
            raise ValueError(f"{op}: {name} goes with {of}; give that too, or add it beforehand.")
        if bias is not None:
            checks.check_array(op, name, bias, ("H", "V"), checks.FLOAT32, sizes)
    cache = {"cached_k": cached_k, "cached_v": cached_v, "cached_length": cached_length}
    missing = [name for name, array in cache.items() if array is None]
    if len(missing) == len(cache):
        return
    if missing:
        raise ValueError(f"{op}: {', '.join(cache)} go together; give all or none. Missing: {', '.join(missing)}.")
    checks.check_array(op, "cached_k", cached_k, ("B", "S", "H", "K"), (q.dtype,), sizes)
    checks.check_array(op, "cached_v", cached_v, ("B", "S", "H", "V"), (q.dtype,), sizes)
    checks.check_array(op, "cached_length", cached_length, ("B",), checks.INTEGER, sizes)
    checks.check_range(op, "cached_length", cached_length, 0, min(sizes["S"], chunk_size))


_TRITON, _INTERPRET = kernel_implementations(vjp.chunked_attention, tiles.launches, tiles.refuse)
OP = Op("chunked_attention", _check, (_TRITON, reference_implementation(reference.chunked_attention), _INTERPRET))
