"""The attention kernels under jax's transformations; values by the interpreter, programs by their CUDA lowering."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bench.inspect.lowering import lower
from bench.inspect.triton_ir import execute
from pallas_kernels import (
    AttentionTiles,
    KernelUnavailable,
    chunked_attention,
    compile_for,
    kernels_in,
    normalized_rotary_attention,
    strict,
)
from pallas_kernels.chunked_attention.launch import DK, DQ, DV, FORWARD
from tests import attention_laws, cases
from tests.tolerance import assert_close

LENGTH = 40
Q, K, V = (jnp.asarray(cases.normal(cases.rng(seed), 2, LENGTH, 2, size)) for seed, size in enumerate((8, 8, 12)))
IDS = jnp.asarray(np.repeat([1, 2], [17, 23])[None].repeat(2, 0).astype(np.int32))
STACK, KEYS = jnp.stack([Q, 2 * Q]), jnp.stack([K, -K])
TILES = AttentionTiles(16, 16, 16, 16, 1, 1)
CACHE = {"cached_k": K[:, :16], "cached_v": V[:, :16], "cached_length": jnp.asarray([3, 16])}


def attend(q, k=K, v=V, *, implementation=None, **kwargs):
    return chunked_attention(q, k, v, chunk_size=16, implementation=implementation, **kwargs)


def energy(q, k=K, v=V, **kwargs):
    return jnp.sum(jnp.sin(attend(q, k, v, **kwargs)))


kernel, plain = partial(attend, implementation="triton_interpret"), partial(attend, implementation="xla")
kernel_energy, plain_energy = partial(energy, implementation="triton_interpret"), partial(energy, implementation="xla")


def scan(f):
    def step(q, _):
        o = f(q)
        return o[..., : q.shape[-1]], o

    return lambda q: jax.lax.scan(step, q, None, length=2)[1]


TRANSFORMED = {
    "grad": (lambda f, e: jax.jit(jax.grad(e, argnums=(0, 1, 2))), (Q, K, V)),
    "vmap": (lambda f, e: jax.vmap(f), (STACK, KEYS)),
    "vmap of grad": (lambda f, e: jax.vmap(jax.grad(e, argnums=(0, 1)), in_axes=(0, None)), (STACK, K)),
    "remat in scan": (lambda f, e: jax.grad(lambda q: jnp.sum(jnp.sin(scan(jax.checkpoint(f))(q)))), (Q,)),
    "grad of a continuation": (lambda f, e: jax.grad(partial(e, **CACHE), argnums=(0, 1, 2)), (Q, K, V)),
    "vmap of a continuation": (lambda f, e: jax.vmap(partial(f, **CACHE)), (STACK, KEYS)),
}


@pytest.mark.parametrize("name", TRANSFORMED)
@pytest.mark.parametrize("rung", [pytest.param("interpreted", marks=pytest.mark.thorough), "lowered"])
def test_values(name, rung):
    transform, arguments = TRANSFORMED[name]
    with attention_laws.launched(TILES):
        if rung == "interpreted":
            found = transform(kernel, kernel_energy)(*arguments)
        else:
            compiled = partial(attend, implementation="triton"), partial(energy, implementation="triton")
            found, _ = execute(transform(*compiled), *arguments)
    expected = jax.tree.leaves(transform(plain, plain_energy)(*arguments))
    for value, other in zip(jax.tree.leaves(found), expected, strict=True):
        assert_close(name, value, other)


def test_where_nobody_names_an_implementation_cuda_runs_the_kernels():
    found, reports = execute(jax.grad(energy, argnums=(0, 1, 2)), Q, K, V)
    assert sorted(report.name for report in reports) == sorted((FORWARD, DQ, DK, DV))
    expected = jax.grad(plain_energy, argnums=(0, 1, 2))(Q, K, V)
    with compile_for("sm_90"):  # and CPU the reference
        here = jax.grad(energy, argnums=(0, 1, 2))(Q, K, V)
    for value, other, right in zip(found, here, expected, strict=True):
        assert_close("lowered", value, right)
        assert_close("here", other, right)


def test_strict_refuses_the_gradient_of_a_continuation():
    """Which is the reference's; the continuation itself is a kernel's."""
    with compile_for("sm_90"), strict():
        attend(Q, **CACHE)
        with pytest.raises(KernelUnavailable, match="continues a cache"):
            jax.grad(energy)(Q, **CACHE)


def test_results_have_names_for_remat():
    def launches(*names):
        policy = jax.checkpoint_policies.save_only_these_names(*names)
        f = jax.checkpoint(partial(attend, implementation="triton"), policy=policy)
        return kernels_in(lower(jax.value_and_grad(lambda q: jnp.sum(f(q))), Q)).count(FORWARD)

    assert launches("chunked_attention_o", "chunked_attention_lse") == 1
    assert launches("chunked_attention_o") == 2


@pytest.mark.parametrize("packed", [False, True])
def test_shard_map(packed):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def sharded(e):
        def part(q, k, v, ids):
            return e(q, k, v, **({"segment_ids": ids} if packed else {}))[None]

        both = jax.shard_map(part, mesh=mesh, in_specs=(P("data"),) * 4, out_specs=P("data"), check_vma=False)
        return jax.jit(jax.grad(lambda q: jnp.sum(both(q, K, V, IDS))))(Q)

    assert_close("dq", sharded(kernel_energy), sharded(plain_energy))


def test_both_ops_in_one_call():
    scale, shift = (jnp.asarray(cases.normal(cases.rng(seed), 2, 2, 8)) for seed in (5, 6))

    def both(z, v, implementation=None):
        return normalized_rotary_attention(z, v, scale, shift, chunk_size=16, implementation=implementation)

    def gradient(implementation):
        return jax.grad(lambda z, v: jnp.sum(jnp.sin(both(z, v, implementation))), argnums=(0, 1))

    found, reports = execute(gradient(None), Q, V)
    assert {"normalized_rotary_forward", "normalized_rotary_backward", FORWARD} <= {report.name for report in reports}
    for value, right in zip(found, gradient("xla")(Q, V), strict=True):
        assert_close("gradient", value, right)


def test_more_than_a_reverse_first_derivative_names_the_way_out():
    for differentiate in (
        lambda f: jax.jvp(f, (Q,), (Q,)),
        lambda f: jax.grad(lambda q: jnp.sum(jax.grad(lambda q: jnp.sum(jnp.sin(f(q))))(q)))(Q),
    ):
        with pytest.raises(TypeError, match='implementation="xla"'):
            differentiate(kernel)
