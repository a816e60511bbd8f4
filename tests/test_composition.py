"""The reference ops inside shard_map, on the two CPU devices of the suite, and exported for two platforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from pallas_kernels import chunked_attention, complex_ema, feature_norm, fused_linear, normalized_rotary, timestep_norm
from tests import cases
from tests.tolerance import assert_close

LENGTH = 40


def op(name):
    r = cases.rng(0)
    _, p, q, gamma, omega, _ = map(jnp.asarray, cases.ema(r, 1, 1, 6, 3))
    ids = jnp.asarray(np.repeat([1, 2], [15, 25])[None].astype(np.int32))
    x_bias = jnp.arange(6.0)
    heads = lambda x: x.reshape(*x.shape[:2], 2, 3)  # noqa: E731
    return {
        "complex_ema": lambda x: complex_ema(x, p, q, gamma, omega),
        "complex_ema packed": lambda x: complex_ema(x, p, q, gamma, omega, segment_ids=ids.repeat(x.shape[0], 0)),
        "timestep_norm": lambda x: timestep_norm(x, num_groups=2),
        "chunked_attention": lambda x: chunked_attention(heads(x), heads(x), heads(x), chunk_size=8),
        "normalized_rotary": lambda x: normalized_rotary(
            x[:, :, None], *[jnp.ones((2, 1, 6))] * 2, positions=jnp.arange(LENGTH)
        )[0],
        "fused_linear": lambda x: fused_linear(x, jnp.eye(6) + x_bias, x_bias=x_bias, residual=x, activation="silu"),
        "feature_norm": lambda x: feature_norm(x, x_bias, x_bias, centred=True, minus_one=True),
    }[name]


NAMES = [
    *("complex_ema", "complex_ema packed", "timestep_norm", "chunked_attention", "normalized_rotary", "fused_linear"),
    "feature_norm",
]


@pytest.mark.parametrize("name", NAMES)
def test_shard_map_over_the_batch(name):
    f, x = op(name), jnp.asarray(cases.normal(cases.rng(1), 2, LENGTH, 6))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("data"), out_specs=P("data")))
    assert_close("y", sharded(x), f(x))
    gradient = lambda f: jax.jit(jax.grad(lambda x: jnp.sum(f(x) ** 2)))(x)  # noqa: E731
    assert_close("dx", gradient(sharded), gradient(f))


@pytest.mark.parametrize("name", NAMES)
def test_export_for_cpu_and_cuda(name):
    f, x = op(name), jnp.asarray(cases.normal(cases.rng(2), 2, LENGTH, 6))
    exported = jax.export.export(jax.jit(f), platforms=("cpu", "cuda"))(x)
    assert_close("y", exported.call(x), f(x))
