"""round_weights: every number as `astype` rounds it, on every rung; which launches it takes; what it refuses."""

import jax
import jax.numpy as jnp
import pytest

from bench.inspect import TARGETS, compile_program, tools
from pallas_kernels import ElementTiles, compile_for, explain, round_weights, use_tiles
from tests import kernel_parity, rounding_laws


@kernel_parity.on_both_rungs
@pytest.mark.parametrize(("given", "wanted"), rounding_laws.DTYPES)
def test_as_astype_rounds(rung, given, wanted):
    rounding_laws.check_rounding(rung, given, wanted)


@pytest.mark.parametrize("implementation", ["xla", "triton_interpret"])
def test_no_gradient_goes_through(implementation):
    loss = lambda w: round_weights(w, implementation=implementation)[0].astype(jnp.float32).sum()  # noqa: E731
    assert not jax.grad(loss)(rounding_laws.weights()[1]).any()


def test_explained():
    with compile_for("sm_90"):
        chosen = next(
            row for row in explain(round_weights, *rounding_laws.weights(), dtype=jnp.bfloat16).rows if row.chosen
        )
    assert list(map(str, chosen.launches)) == ["round_weights: 2048 numbers, 4 warps (heuristic)"]


@kernel_parity.on_both_rungs
def test_other_blocks_give_the_same(rung):
    with use_tiles(round_weights=ElementTiles(block_size=16, num_warps=1)):
        rounding_laws.check_rounding(rung, jnp.float32, jnp.bfloat16)


def test_a_dtype_by_name():
    for implementation in ("xla", "triton_interpret"):
        (copy,) = round_weights(jnp.ones((2, 3)), dtype="bfloat16", implementation=implementation)
        assert copy.dtype == jnp.bfloat16


@pytest.mark.skipif(tools.missing() is not None, reason=str(tools.missing()))
@pytest.mark.parametrize("target", ["sm_90", *(pytest.param(t, marks=pytest.mark.all_targets) for t in TARGETS)])
def test_one_launch(target):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2048, 512), (256, 512), (512, 2000))]
    compiled = compile_program(jax.jit(lambda *w: round_weights(*w)), *shapes, target=target, kernels="pallas")
    assert compiled.static_launches == 1
    assert compiled.bytes_moved == sum(shape.size for shape in shapes) * 6
    (kernel,) = compiled.kernels.values()
    assert kernel.spill_bytes == 0
