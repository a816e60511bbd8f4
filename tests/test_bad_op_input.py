"""Bad input of every op: the error says what was given and what is expected."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import (
    chunked_attention,
    complex_ema,
    explain,
    feature_norm,
    fused_linear,
    linear_cross_entropy,
    normalized_rotary,
    normalized_rotary_attention,
    round_weights,
    timestep_norm,
)

X = jnp.ones((2, 8, 4))
P = jnp.ones((4, 3))
Q = jnp.full((4, 3), 0.5 + 0j)
HEADS = jnp.ones((2, 8, 1, 4))


def rotary(z, **kwargs):
    ones = jnp.ones((2, *z.shape[2:]))
    given = {"scale": ones, "shift": ones, "positions": jnp.arange(z.shape[1])} | kwargs
    return normalized_rotary(z, **given)


def in_one_call(z, **kwargs):
    ones = jnp.ones((2, *HEADS.shape[2:]))
    return normalized_rotary_attention(z, HEADS, ones, ones, **{"chunk_size": 4} | kwargs)


def cross_entropy(**kwargs):
    given = {"hidden": X[0], "weight": P.T, "targets": jnp.zeros(8, jnp.int32), "factors": jnp.ones(8)} | kwargs
    return linear_cross_entropy(**given)


BAD = {
    "rank": (ValueError, r"\[B, L, D\]", lambda: complex_ema(X[0], P, Q, Q)),
    "features": (ValueError, r"= \(4, 3\)", lambda: complex_ema(X, P[:3], Q, Q)),
    "states": (ValueError, "gamma", lambda: complex_ema(X, P, Q, Q[:, :2])),
    "empty": (ValueError, "empty", lambda: complex_ema(X[:, :0], P, Q, Q)),
    "real q": (TypeError, "complex64", lambda: complex_ema(X, P, P, Q)),
    "float16": (TypeError, "float16", lambda: complex_ema(X.astype(jnp.float16), P, Q, Q)),
    "int x": (TypeError, "float32 or bfloat16", lambda: complex_ema(X.astype(int), P, Q, Q)),
    "h0": (ValueError, "h0", lambda: complex_ema(X, P, Q, Q, h0=Q[None])),
    "omega": (ValueError, "omega", lambda: complex_ema(X, P, Q, Q, P[0])),
    "mask dtype": (TypeError, "mask must be bool", lambda: complex_ema(X, P, Q, Q, mask=jnp.ones((2, 8)))),
    "mask shape": (ValueError, "mask", lambda: complex_ema(X, P, Q, Q, mask=jnp.ones((2, 7), bool))),
    "segments": (TypeError, "segment_ids", lambda: complex_ema(X, P, Q, Q, segment_ids=jnp.ones((2, 8)))),
    "list": (TypeError, "array", lambda: complex_ema([1.0], P, Q, Q)),
    "groups": (ValueError, "divisible", lambda: timestep_norm(X, num_groups=3)),
    "no groups": (ValueError, "positive int", lambda: timestep_norm(X, num_groups=0)),
    "eps": (ValueError, "eps", lambda: timestep_norm(X, num_groups=2, eps=0.0)),
    "array eps": (TypeError, "Python number", lambda: timestep_norm(X, num_groups=2, eps=jnp.float32(1e-5))),
    "traced eps": (TypeError, "eps", lambda: jax.jit(lambda eps: timestep_norm(X, num_groups=2, eps=eps))(1e-5)),
    "statistics": (ValueError, "token_mean", lambda: timestep_norm(X, num_groups=2, statistics="mean")),
    "weight": (ValueError, "weight", lambda: timestep_norm(X, jnp.ones(3), num_groups=2)),
    "state": (TypeError, "count, mean, var", lambda: timestep_norm(X, num_groups=2, state=X)),
    "state shape": (
        ValueError,
        "state mean",
        lambda: timestep_norm(X, num_groups=2, state=(jnp.zeros(2, jnp.int32), P, P)),
    ),
    "key dim": (ValueError, "k must", lambda: chunked_attention(HEADS, HEADS[..., :3], HEADS, chunk_size=4)),
    "mixed": (TypeError, "v must", lambda: chunked_attention(HEADS, HEADS, HEADS.astype(jnp.bfloat16), chunk_size=4)),
    "half a cache": (
        ValueError,
        "Missing: cached_v, cached_length",
        lambda: chunked_attention(HEADS, HEADS, HEADS, chunk_size=4, cached_k=HEADS),
    ),
    "cached length": (
        ValueError,
        r"cached_length must be in \[0, 4\], got \[5",
        lambda: chunked_attention(
            *[HEADS] * 3, chunk_size=4, cached_k=HEADS, cached_v=HEADS, cached_length=jnp.full(HEADS.shape[0], 5)
        ),
    ),
    "no softmax dtype": (
        TypeError,
        "floating dtype, got None",
        lambda: chunked_attention(*[HEADS] * 3, chunk_size=4, softmax_dtype=None),
    ),
    "array rate": (
        ValueError,
        "Python number",
        lambda: chunked_attention(*[HEADS] * 3, chunk_size=4, dropout_rate=jnp.float32(0.1)),
    ),
    "both, segments": (
        ValueError,
        "segment_ids must have shape",
        lambda: in_one_call(HEADS, segment_ids=jnp.ones((2, 5), int)),
    ),
    "both, chunk": (ValueError, "chunk_size must be", lambda: in_one_call(HEADS, chunk_size=None)),
    "both, list": (TypeError, "z must be an array", lambda: in_one_call([1.0])),
    "cache dtype": (
        TypeError,
        "cached_k must be float32",
        lambda: chunked_attention(
            HEADS,
            HEADS,
            HEADS,
            chunk_size=4,
            cached_k=HEADS.astype(jnp.bfloat16),
            cached_v=HEADS,
            cached_length=jnp.zeros(HEADS.shape[0], jnp.int32),
        ),
    ),
    "softmax": (
        TypeError,
        "floating dtype, got",
        lambda: chunked_attention(HEADS, HEADS, HEADS, chunk_size=4, softmax_dtype=jnp.int32),
    ),
    "dropout": (
        ValueError,
        r"\[0, 1\], got 1.5",
        lambda: chunked_attention(HEADS, HEADS, HEADS, chunk_size=4, dropout_rate=1.5),
    ),
    "dropout key": (
        ValueError,
        "needs dropout_key",
        lambda: chunked_attention(HEADS, HEADS, HEADS, chunk_size=4, dropout_rate=0.5),
    ),
    "odd head": (ValueError, "head dim 3 is odd", lambda: rotary(HEADS[..., :3])),
    "scale": (ValueError, "scale must have shape", lambda: rotary(HEADS, scale=jnp.ones((1, *HEADS.shape[2:])))),
    "positions": (ValueError, "positions must", lambda: rotary(HEADS, positions=jnp.arange(3))),
    "float positions": (TypeError, "positions must", lambda: rotary(HEADS, positions=jnp.ones(HEADS.shape[1]))),
    "base": (ValueError, "base must be positive", lambda: rotary(HEADS, base=-1.0)),
    "scale_offset": (ValueError, "scale_offset must be finite", lambda: rotary(HEADS, scale_offset=float("inf"))),
    "scale_factor": (TypeError, "scale_factor must be a Python", lambda: rotary(HEADS, scale_factor=jnp.float32(0.5))),
    "weight of a product": (ValueError, "weight must have shape", lambda: fused_linear(X, jnp.ones((3, 5)))),
    "weight dtype": (TypeError, "float16 overflows", lambda: fused_linear(X, jnp.ones((3, 4), jnp.float16))),
    "bias of a product": (ValueError, "bias must have shape", lambda: fused_linear(X, P.T, jnp.ones(4))),
    "x_bias": (ValueError, "x_bias must have shape", lambda: fused_linear(X, P.T, x_bias=jnp.ones(3))),
    "residual": (ValueError, "residual must have shape", lambda: fused_linear(X, P.T, residual=X)),
    "residual dtype": (
        TypeError,
        "residual must be float32",
        lambda: fused_linear(X, jnp.eye(4), residual=X.astype(jnp.bfloat16)),
    ),
    "no layer": (ValueError, "at least one weight", lambda: fused_linear(X, ())),
    "biases of layers": (
        ValueError,
        "bias must be None or a tuple of 2, got a tuple of 1",
        lambda: fused_linear(X, (P.T, P.T), (None,)),
    ),
    "one bias of layers": (
        ValueError,
        "weight is a tuple of 2, so bias must be None or a tuple of 2, got an array",
        lambda: fused_linear(X, (P.T, P.T), jnp.ones(3)),
    ),
    "one residual of layers": (
        ValueError,
        "residual must be None or a tuple of 1, got an array",
        lambda: fused_linear(X, (jnp.eye(4),), residual=X),
    ),
    "one copy of layers": (
        ValueError,
        "rounded must be None or a tuple of 2, got an array",
        lambda: fused_linear(X, (P.T, P.T), rounded=P.T),
    ),
    "biases of one layer": (
        ValueError,
        "weight is an array, so bias must be None or an array, got a tuple of 1",
        lambda: fused_linear(X, P.T, (jnp.ones(3),)),
    ),
    "weight of a layer": (
        ValueError,
        r"weight\[1\] must have shape",
        lambda: fused_linear(X, (P.T, jnp.ones((3, 5)))),
    ),
    "residual of a layer": (
        ValueError,
        r"residual\[1\] must have shape \[B, L, O\] = \(2, 8, 3\)",
        lambda: fused_linear(X, (jnp.eye(4), P.T), residual=(X, X)),
    ),
    "list of layers": (TypeError, r"weight must be an array \[O, D\], got list", lambda: fused_linear(X, [P.T])),
    "gate": (ValueError, "gate must have shape", lambda: fused_linear(X, P.T, gate=X[:, :1])),
    "gate_bias": (ValueError, "gate_bias is for a gate", lambda: fused_linear(X, P.T, gate_bias=jnp.ones(4))),
    "copy of a weight": (
        TypeError,
        "rounded must be float32",
        lambda: fused_linear(X, P.T, rounded=P.T.astype(jnp.bfloat16)),
    ),
    "no weight to round": (ValueError, "at least one weight", lambda: round_weights()),
    "weight to round": (ValueError, "weight 1 must have shape", lambda: round_weights(P, jnp.ones(3))),
    "rounded to no dtype": (
        TypeError,
        "dtype must be float32 or bfloat16, got 'bf'",
        lambda: round_weights(P, dtype="bf"),
    ),
    "rounded to": (TypeError, "dtype must be float32 or bfloat16", lambda: round_weights(P, dtype=jnp.int8)),
    "v_bias": (
        ValueError,
        "v_bias goes with v_activation",
        lambda: chunked_attention(HEADS, HEADS, HEADS, chunk_size=4, v_bias=jnp.ones(HEADS.shape[2:])),
    ),
    "v_activation": (
        ValueError,
        "v_activation must be one of None, 'silu'",
        lambda: chunked_attention(HEADS, HEADS, HEADS, chunk_size=4, v_activation="gelu"),
    ),
    "weight of a norm": (ValueError, "weight must have shape", lambda: feature_norm(X, jnp.ones(3), centred=True)),
    "bias of a norm": (
        TypeError,
        "bias must be float32",
        lambda: feature_norm(X, bias=jnp.ones(4, jnp.bfloat16), centred=False),
    ),
    "centred": (ValueError, "centred must be one of False, True", lambda: feature_norm(X, centred="yes")),
    "eps of a norm": (ValueError, "eps must be positive", lambda: feature_norm(X, centred=True, eps=0.0)),
    "activation": (ValueError, "None, 'silu', got 'gelu'", lambda: fused_linear(X, P.T, activation="gelu")),
    "hidden": (ValueError, r"hidden must have shape \[T, D\]", lambda: cross_entropy(hidden=X)),
    "head": (ValueError, "weight must have shape", lambda: cross_entropy(weight=P)),
    "head dtype": (TypeError, "weight must be float32", lambda: cross_entropy(weight=P.T.astype(jnp.bfloat16))),
    "targets": (ValueError, "targets must have shape", lambda: cross_entropy(targets=jnp.zeros(7, jnp.int32))),
    "float targets": (TypeError, "targets must be int32", lambda: cross_entropy(targets=jnp.zeros(8))),
    "factors": (ValueError, "factors must have shape", lambda: cross_entropy(factors=jnp.ones((8, 1)))),
    "so far": (TypeError, "so_far must be float32", lambda: cross_entropy(so_far=P.T.astype(jnp.bfloat16))),
    "chunk": (ValueError, "chunk_size", lambda: chunked_attention(HEADS, HEADS, HEADS, chunk_size=0)),
    "precision": (ValueError, "tf32", lambda: chunked_attention(HEADS, HEADS, HEADS, chunk_size=4, precision="high")),
}


@pytest.mark.usefixtures("unhooked")
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    kind, message, call = BAD[name]
    with pytest.raises(kind, match=message):
        call()


def test_more_than_2_31_elements_is_refused(unhooked):
    big = jax.ShapeDtypeStruct((2**16, 2**15, 2), jnp.bfloat16)
    with pytest.raises(ValueError, match="2\\^31"):
        explain(timestep_norm, big, num_groups=2)
