"""The ComplexEMA kernels under jax's transformations; values by the interpreter, programs by their CUDA lowering."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from bench.inspect.lowering import lower
from bench.inspect.triton_ir import execute
from pallas_kernels import Tiles, compile_for, complex_ema, kernels_in, use_tiles
from pallas_kernels.complex_ema.launch import BACKWARD, FORWARD
from tests import cases, ema_laws
from tests.tolerance import assert_close

LENGTH = 40
X, PARAMETER, Q, GAMMA, OMEGA, H0 = map(jnp.asarray, cases.ema(cases.rng(0), 2, LENGTH, 4, 2))
IDS = jnp.asarray(np.repeat([1, 2], [17, 23])[None].repeat(2, 0).astype(np.int32))
STACK, QS, STATES = jnp.stack([X, 2 * X]), jnp.stack([Q, Q * 0.5]), jnp.stack([H0, -H0])


def ema(x, q=Q, h0=None, *, implementation=None, **kwargs):
    return complex_ema(x, PARAMETER, q, GAMMA, OMEGA, h0=h0, implementation=implementation, **kwargs)


def energy(x, q=Q, h0=None, **kwargs):
    return jnp.sum(jnp.sin(ema(x, q, h0, **kwargs)))


kernel, plain = partial(ema, implementation="triton_interpret"), partial(ema, implementation="xla")
kernel_energy, plain_energy = partial(energy, implementation="triton_interpret"), partial(energy, implementation="xla")


def scan(f):
    return lambda x: jax.lax.scan(lambda carry, _: (f(carry), None), x, None, length=2)[0]


def carried(f):
    """A scan over pieces of a sequence that hands the state on."""

    def step(h, piece):
        y, h = f(piece, Q, h, return_state=True)
        return h, y

    return lambda pieces, h: jax.lax.scan(step, h, pieces)


TRANSFORMED = {
    "grad": (lambda f, e: jax.jit(jax.grad(e, argnums=(0, 1, 2))), (X, Q, H0)),
    "vmap of coefficients and states": (lambda f, e: jax.vmap(f), (STACK, QS, STATES)),
    "vmap of grad": (lambda f, e: jax.vmap(jax.grad(e, argnums=(0, 1)), in_axes=(0, None)), (STACK, Q)),
    "remat in scan": (lambda f, e: jax.grad(lambda x: jnp.sum(jnp.sin(scan(jax.checkpoint(f))(x)))), (X,)),
    "scan that hands the state on": (lambda f, e: jax.jit(carried(f)), (STACK, H0)),
    "grad of a scan that hands the state on": (
        lambda f, e: jax.jit(jax.grad(lambda x, h: jnp.sum(jnp.sin(carried(f)(x, h)[1])), argnums=(0, 1))),
        (STACK, H0),
    ),
}


@pytest.mark.parametrize("name", TRANSFORMED)
@pytest.mark.parametrize("rung", [pytest.param("interpreted", marks=pytest.mark.thorough), "lowered"])
def test_values(name, rung):
    transform, arguments = TRANSFORMED[name]
    with ema_laws.both(Tiles(4, 2, 1)):
        if rung == "interpreted":
            found = transform(kernel, kernel_energy)(*arguments)
        else:
            compiled = partial(ema, implementation="triton"), partial(energy, implementation="triton")
            found, _ = execute(transform(*compiled), *arguments)
    expected = jax.tree.leaves(transform(plain, plain_energy)(*arguments))
    for value, other in zip(jax.tree.leaves(found), expected, strict=True):
        assert_close(name, value, other)


def test_where_nobody_names_an_implementation_cuda_runs_the_kernels():
    found, reports = execute(jax.grad(energy), X)
    assert [report.name for report in reports] == [FORWARD, BACKWARD]
    assert_close("dx", found, jax.grad(plain_energy)(X))
    with compile_for("sm_90"):  # and CPU the reference
        assert_close("dx", jax.grad(energy)(X), jax.grad(plain_energy)(X))


def test_the_cotangent_of_a_state_costs_nothing_where_there_is_none():
    def loss(x, use_state):
        y, h = ema(x, return_state=True, implementation="triton")
        return jnp.sum(y) + (jnp.sum(jnp.real(h)) if use_state else 0.0)

    launches = [kernels_in(lower(jax.grad(partial(loss, use_state=use)), X)).count(BACKWARD) for use in (False, True)]
    assert launches == [1, 2]


def test_states_have_a_name_for_remat():
    def launches(*names):
        policy = jax.checkpoint_policies.save_only_these_names(*names)
        f = jax.checkpoint(partial(ema, implementation="triton"), policy=policy)
        with use_tiles(complex_ema_forward=Tiles(4, 2, 1), complex_ema_backward=Tiles(4, 2, 1)):
            return kernels_in(lower(jax.value_and_grad(lambda x: jnp.sum(f(x))), X))

    assert launches("complex_ema_states").count("complex_ema_join") < launches().count("complex_ema_join")


@pytest.mark.parametrize("packed", [False, True])
def test_shard_map(packed):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def sharded(e):
        part = lambda x, ids: e(x, **({"segment_ids": ids} if packed else {}))[None]  # noqa: E731
        both = jax.shard_map(part, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P("data"), check_vma=False)
        return jax.jit(jax.grad(lambda x: jnp.sum(both(x, IDS))))(X)

    assert_close("dx", sharded(kernel_energy), sharded(plain_energy))
    with pytest.raises(NotImplementedError, match="check_vma=False"):
        jax.jit(jax.shard_map(kernel, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(X)


def test_export_for_two_platforms():
    with compile_for("sm_90"):
        exported = jax.export.export(
            jax.jit(lambda x: ema(x)),
            platforms=("cpu", "cuda"),
            disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")],
        )(X)
    assert FORWARD in exported.mlir_module()
    assert_close("y", exported.call(X), plain(X))


def test_more_than_a_reverse_first_derivative_names_the_way_out():
    for differentiate in (
        lambda f: jax.jvp(f, (X,), (X,)),
        lambda f: jax.grad(lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(f(x))))(x)))(X),
    ):
        with pytest.raises(TypeError, match='implementation="xla"'):
            differentiate(kernel)


def test_closed_over_coefficients_are_the_same_ones():
    """Constants of a program are folded by the compiler."""
    assert_close("y", jax.jit(lambda x: kernel(x))(X), kernel(X))
