"""Toy Pallas kernels and helpers for the tests of the Triton IR interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from bench.inspect.lowering import lower, triton_calls
from bench.inspect.triton_ir import (
    KernelFault,
    execute,
)

S = jax.ShapeDtypeStruct
F, INT = jnp.float32, jnp.int32
PARAMS = plt.CompilerParams(num_warps=2, num_stages=1)


def on_gpu(bind):
    """Run a pallas_call bind as jax >= 0.11 wants it where there is no GPU; older releases need nothing."""
    if not hasattr(jax.sharding, "AbstractDevice"):
        return bind()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="cuda")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("_",), abstract_device=device)):
        return bind()


def kernel(body, out_shape, *, interpret=False, **kwargs):
    call = pl.pallas_call(body, out_shape=out_shape, compiler_params=PARAMS, interpret=interpret, **kwargs)
    return (lambda *args: call(*args)) if interpret else (lambda *args: on_gpu(lambda: call(*args)))


def whole(*shape):
    return pl.BlockSpec(shape, lambda *_: (0,) * len(shape))


def rows(n, *rest):
    return pl.BlockSpec((n, *rest), lambda i, *_: (i, *(0,) * len(rest)))


def the_call(function, *avals):
    [call] = triton_calls(lower(function, *avals))
    return call


def normal(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def fault_of(function, *arrays):
    with pytest.raises(KernelFault) as caught:
        execute(function, *arrays)
    return caught.value.fault


def fma(a, b, c):
    shape = S(a.shape, F)
    asm = "fma.rn.f32 $0, $1, $2, $3;"
    [result] = plt.elementwise_inline_asm(
        asm, args=[a, b, c], constraints="=f,f,f,f", pack=1, result_shape_dtypes=[shape]
    )
    return result


def norm_body(x_ref, w_ref, y_ref):
    x = x_ref[...].astype(F)
    centred = x - jnp.mean(x, axis=1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.mean(centred * centred, axis=1, keepdims=True) + 1e-5)
    y_ref[...] = (centred * scale * w_ref[...].astype(F)[None, :]).astype(y_ref.dtype)


def row_norm(x, w):
    specs = [rows(4, x.shape[1]), whole(w.shape[0])]
    return kernel(norm_body, S(x.shape, x.dtype), grid=(x.shape[0] // 4,), in_specs=specs, out_specs=specs[0])(x, w)


def norm64(x, w):
    x, w = np.float64(x), np.float64(w)
    centred = x - x.mean(1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * w
