"""The TimestepNorm kernels under jax's transformations; values by the interpreter, programs by their CUDA lowering."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from bench.inspect.lowering import lower, triton_calls
from bench.inspect.triton_ir import execute
from megalodon_jax.layers import TimestepNorm
from pallas_kernels import Tiles, compile_for, kernels_in, timestep_norm, use_implementation, use_tiles
from tests import cases
from tests.tolerance import assert_close

FORWARD, BACKWARD = "timestep_norm_forward", "timestep_norm_backward"
X = jnp.asarray(cases.normal(cases.rng(0), 2, 20, 12))
WEIGHT, BIAS = (jnp.asarray(cases.normal(cases.rng(seed), 12)) for seed in (1, 2))
IDS = jnp.asarray(np.repeat([1, 2], [9, 11])[None].repeat(2, 0).astype(np.int32))
IDS_STACK = jnp.stack([IDS, IDS.at[1].set(1), IDS[:, ::-1]])


def norm(x, weight=WEIGHT, *, implementation=None, **kwargs):
    return timestep_norm(x, weight, BIAS, num_groups=4, implementation=implementation, **kwargs)


def energy(x, weight=WEIGHT, **kwargs):
    return jnp.sum(jnp.sin(norm(x, weight, **kwargs)))


kernel, plain = partial(norm, implementation="triton_interpret"), partial(norm, implementation="xla")
kernel_energy, plain_energy = partial(energy, implementation="triton_interpret"), partial(energy, implementation="xla")
STACK = jnp.stack([X, 2 * X, X - 3])
WEIGHTS = jnp.stack([WEIGHT, BIAS, WEIGHT * BIAS])


MASK = jnp.asarray(cases.rng(3).random((3, 2, 20)) > 0.2)
STATE = (jnp.asarray([[0, 3], [1, 2], [4, 0]], jnp.int32),
         *(jnp.asarray(np.abs(cases.normal(cases.rng(seed), 3, 2, 4))) for seed in (4, 5)))  # fmt: skip
SHORT = Tiles(8, 3, 1)


def with_everything(f):
    return lambda x, mask, ids, state: f(x, mask=mask, segment_ids=ids, state=state)


def carried(f):
    """A scan over pieces of a sequence that hands the state on."""

    def step(state, piece):
        y, state = f(*piece, state)
        return state, y

    return lambda pieces, masks, ids, state: jax.lax.scan(step, state, (pieces, masks, ids))


def scan(f):
    return lambda x: jax.lax.scan(lambda carry, _: (f(carry), None), x, None, length=2)[0]


def remat(f, policy=None):
    return jax.grad(lambda x: jnp.sum(jnp.sin(jax.checkpoint(f, policy=policy)(x))))


SAVE_STATISTICS = jax.checkpoint_policies.save_only_these_names("timestep_norm_mean", "timestep_norm_var")
TRANSFORMED = {
    "jit": (lambda f, e: jax.jit(f), (X,)),
    "grad": (lambda f, e: jax.jit(jax.grad(e, argnums=(0, 1))), (X, WEIGHT)),
    "vmap": (lambda f, e: jax.vmap(f), (STACK,)),
    "vmap of weights too": (lambda f, e: jax.vmap(f), (STACK, WEIGHTS)),
    "vmap twice": (lambda f, e: jax.vmap(jax.vmap(f)), (STACK[:, None],)),
    "vmap of grad": (lambda f, e: jax.vmap(jax.grad(e, argnums=(0, 1)), in_axes=(0, None)), (STACK, WEIGHT)),
    "remat": (lambda f, e: remat(f), (X,)),
    "remat that keeps the statistics": (lambda f, e: remat(f, SAVE_STATISTICS), (X,)),
    "scan": (lambda f, e: jax.jit(scan(f)), (X,)),
    "grad of scan": (lambda f, e: jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(scan(f)(x))))), (X,)),
    "grad of remat in scan": (lambda f, e: jax.grad(lambda x: jnp.sum(jnp.sin(scan(jax.checkpoint(f))(x)))), (X,)),
    "vmap of tokens and states": (lambda f, e: jax.vmap(with_everything(f)), (STACK, MASK, IDS_STACK, STATE)),
    "vmap of grad of tokens and states": (
        lambda f, e: jax.vmap(jax.grad(with_everything(e), argnums=0)),
        (STACK, MASK, IDS_STACK, STATE),
    ),
    "vmap of x alone among tokens and states": (
        lambda f, e: jax.vmap(jax.grad(with_everything(e)), in_axes=(0, None, 0, None)),
        (STACK, MASK[0], IDS_STACK, jax.tree.map(lambda a: a[0], STATE)),
    ),
    "scan that hands the state on": (
        lambda f, e: jax.jit(carried(with_everything(partial(f, return_state=True)))),
        (STACK, MASK, IDS_STACK, jax.tree.map(lambda a: a[0], STATE)),
    ),
    "grad of a scan that hands the state on": (
        lambda f, e: jax.jit(
            jax.grad(
                lambda x, *rest: jnp.sum(jnp.sin(carried(with_everything(partial(f, return_state=True)))(x, *rest)[1]))
            )
        ),
        (STACK, MASK, IDS_STACK, jax.tree.map(lambda a: a[0], STATE)),
    ),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_values_over_several_tiles_and_chunks(name):
    with use_tiles(timestep_norm_forward=SHORT, timestep_norm_backward=SHORT):
        test_values(name)


@pytest.mark.parametrize("name", TRANSFORMED)
def test_values(name):
    transform, arguments = TRANSFORMED[name]
    for value, expected in zip(
        jax.tree.leaves(transform(kernel, kernel_energy)(*arguments)),
        jax.tree.leaves(transform(plain, plain_energy)(*arguments)),
        strict=True,
    ):
        assert_close(name, value, expected)


@pytest.mark.parametrize(
    "name", ["vmap", "vmap twice", "vmap of grad", "vmap of grad of tokens and states", "grad of remat in scan"]
)
def test_lowered_kernels_give_the_same(name):
    transform, arguments = TRANSFORMED[name]
    found, reports = execute(
        transform(partial(norm, implementation="triton"), partial(energy, implementation="triton")), *arguments
    )
    assert {report.name for report in reports} >= {FORWARD}
    expected = jax.tree.leaves(transform(plain, plain_energy)(*arguments))
    for value, other in zip(jax.tree.leaves(found), expected, strict=True):
        assert_close(name, value, other)


@pytest.mark.parametrize("name", ["vmap of grad", "vmap of grad of tokens and states"])
def test_where_nobody_names_an_implementation_cuda_runs_the_kernels(name):
    transform, arguments = TRANSFORMED[name]
    found, reports = execute(transform(norm, energy), *arguments)
    assert [report.name for report in reports] == [FORWARD, BACKWARD]
    expected = jax.tree.leaves(transform(plain, plain_energy)(*arguments))
    for value, other in zip(jax.tree.leaves(found), expected, strict=True):
        assert_close(name, value, other)


def test_where_nobody_names_an_implementation_cpu_runs_the_reference():
    transform, arguments = TRANSFORMED["vmap of grad of tokens and states"]
    with compile_for("sm_90"):
        found = transform(norm, energy)(*arguments)
    assert_close("dx", found, transform(plain, plain_energy)(*arguments))


def test_vmap_adds_a_grid_axis_and_copies_nothing():
    batched = jax.vmap(partial(norm, implementation="triton"), in_axes=(0, None))
    (call,) = triton_calls(lower(batched, STACK, WEIGHT))
    assert np.prod(call.grid) == 3 * 2 * 4
    assert [operand.shape for operand in call.operands].count((12,)) == 2  # weight and bias, not one for each of three


def test_remat_runs_what_its_policy_says():
    def launches(policy):
        f = remat(partial(norm, implementation="triton"), policy)
        return kernels_in(lower(f, X)).count(FORWARD)

    assert launches(jax.checkpoint_policies.nothing_saveable) == 2
    assert launches(jax.checkpoint_policies.everything_saveable) == 1


@pytest.mark.parametrize("kwargs", [{}, {"segment_ids": True}])
def test_shard_map_without_vma_checks(kwargs):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def sharded(e):
        def part(x, ids):
            return e(x, **({"segment_ids": ids} if kwargs else {}))[None]

        both = jax.shard_map(part, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P("data"), check_vma=False)
        return jax.jit(jax.grad(lambda x: jnp.sum(both(x, IDS))))(X)

    assert_close("dx", sharded(kernel_energy), sharded(plain_energy))


@pytest.mark.parametrize("implementation", [None, "triton"])
def test_shard_map_for_a_gpu_that_is_not_there(implementation):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    f = partial(norm, implementation=implementation)
    sharded = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False))
    with compile_for("sm_90"):
        if implementation is None:  # on CPU the reference runs
            assert_close("y", sharded(X), plain(X))
        else:
            assert jax.eval_shape(sharded, X).shape == X.shape


def test_a_second_eager_call_traces_nothing(monkeypatch):
    kernel(X), jax.grad(kernel_energy)(X)
    monkeypatch.setattr("pallas_kernels._backends.triton.pl.pallas_call", None)  # would be called by a trace
    kernel(X + 1), jax.grad(kernel_energy)(X + 1)


def test_a_tuple_that_ends_in_the_reference_runs_anywhere():
    with compile_for("sm_90"):
        assert_close("y", norm(X, implementation=("triton", "xla")), plain(X))


def test_shard_map_with_vma_checks_is_refused_with_the_way_out():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def run(f):
        return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(X)

    with pytest.raises(NotImplementedError, match="check_vma=False"):
        run(kernel)
    with compile_for("sm_90"):  # nobody asked for the kernel: the reference takes over
        assert_close("y", run(norm), plain(X))


def test_export_for_two_platforms():
    with compile_for("sm_90"):
        exported = jax.export.export(
            jax.jit(lambda x: norm(x)),
            platforms=("cpu", "cuda"),
            disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")],
        )(X)
    assert FORWARD in exported.mlir_module()
    assert_close("y", exported.call(X), plain(X))


def test_a_cpu_placed_program_on_a_gpu_target_runs_the_reference():
    with compile_for("sm_90"):
        value, pullback = jax.vjp(lambda x: norm(x), X)
    assert_close("y", value, plain(X))
    expected = jax.vjp(plain, X)[1](jnp.ones_like(X))[0]
    assert_close("dx", pullback(jnp.ones_like(X))[0], expected)


def test_the_gradient_belongs_to_its_forward():
    """Forward made for a GPU, pullback called outside that context, and the other way round."""

    def inside(x):
        with compile_for("sm_90"):
            _, pullback = jax.vjp(partial(norm, implementation="triton"), x)
        return pullback(jnp.ones_like(x))

    def outside(x):
        _, pullback = jax.vjp(plain, x)
        with compile_for("sm_90"), use_implementation(timestep_norm="triton"):
            return pullback(jnp.ones_like(x))

    cuda = lambda f: jax.jit(f).trace(X).lower(lowering_platforms=("cuda",))  # noqa: E731
    assert kernels_in(cuda(inside)) == (FORWARD, BACKWARD)
    assert kernels_in(cuda(outside)) == ()


def test_tiles_are_part_of_the_cache_key():
    grids = []
    f = jax.jit(partial(norm, implementation="triton"))
    with compile_for("sm_90"):
        for chunks in (1, 3, 1):
            with use_tiles(timestep_norm_forward=Tiles(4, chunks, 1)):
                lowered = f.trace(X).lower(lowering_platforms=("cuda",))
                grids.append([call.grid for call in triton_calls(lowered)])
    assert grids[0] == grids[2] == [(4, 2, 1)]
    assert grids[1] == [(4, 2, 3), (4, 2, 3)]


@pytest.mark.parametrize(
    "differentiate",
    [
        lambda f: jax.jvp(f, (X,), (X,)),
        lambda f: jax.jacfwd(lambda x: jnp.sum(f(x)))(X),
        lambda f: jax.grad(lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(f(x))))(x)))(X),
        lambda f: jax.jit(jax.hessian(lambda x: jnp.sum(jnp.sin(f(x)))))(X),
    ],
)
def test_more_than_a_reverse_first_derivative_names_the_way_out(differentiate):
    with pytest.raises(TypeError, match='implementation="xla"'):
        differentiate(kernel)
    differentiate(plain)


def test_under_64_bit_defaults():
    with jax.enable_x64(True):
        found, reports = execute(jax.grad(partial(energy, implementation="triton")), X)
        assert [report.name for report in reports] == [FORWARD, BACKWARD]
        assert_close("dx, lowered", found, jax.grad(plain_energy)(X))
        assert_close("dx", jax.grad(kernel_energy)(X), jax.grad(plain_energy)(X))


def test_two_layers_with_the_kernel_inside_train():
    class Pair(eqx.Module):
        norms: list[TimestepNorm]
        mix: jax.Array

        def __call__(self, x):
            for layer in self.norms:
                x = x + jnp.tanh(layer(x)[0] @ self.mix)
            return x

    pair = Pair([TimestepNorm(12, 4), TimestepNorm(12, 4)], 0.1 * jnp.eye(12))
    target = jnp.roll(X, 1, axis=1)

    def losses(implementation):
        @jax.jit
        def step(parameters):
            with use_implementation(timestep_norm=implementation):
                loss, gradient = jax.value_and_grad(lambda p: jnp.mean(optax.l2_loss(p(X), target)))(parameters)
            return loss, jax.tree.map(lambda p, g: p - 0.1 * g, parameters, gradient)

        parameters, found = pair, []
        for _ in range(5):
            loss, parameters = step(parameters)
            found.append(float(loss))
        return found

    trained = losses("triton_interpret")
    assert trained[-1] < trained[0]
    assert_close("losses", np.asarray(trained), np.asarray(losses("xla")))
