"""Every attention kernel lowers for CUDA on every spec, with the launches, addresses and products it should have."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from bench import ops, parity
from bench.inspect.lowering import lower, triton_calls
from bench.inspect.triton_ir import check_addresses
from bench.inspect.triton_ir.mlir import parse
from megalodon_jax.inference import init_cache
from pallas_kernels import chunked_attention, compile_for, kernels_in
from pallas_kernels.chunked_attention.launch import DK, DQ, DV, FORWARD, GATE
from pallas_kernels.chunked_attention.specs import PRESETS, Spec
from tests import models


def calls(spec: Spec, mode: str = "forward+backward"):
    function, arrays = ops.of(spec).program(spec, mode, "triton")
    with parity.tiles_of(spec):
        return {call.name: call for call in triton_calls(lower(function, arrays, target="sm_90"))}


@pytest.mark.parametrize("spec", PRESETS, ids=str)  # those of parity are lowered to be executed
def test_lowers(spec):
    found = calls(spec)
    assert list(found) == ([FORWARD] if spec.cached else [FORWARD, *[GATE] * spec.gated, DQ, DK, DV])
    for name, call in found.items():
        assert call.grid[2] == spec.batch * spec.heads
        assert call.grid[0] == 1 or name in (FORWARD, DV)


@pytest.mark.parametrize("spec", [spec for spec in PRESETS if not (spec.segments or spec.cached)], ids=str)
def test_addresses_at_full_size(spec):
    for call in calls(spec).values():
        check_addresses(call)


@pytest.mark.parametrize("precision", [None, "tf32"])
def test_products_of_float32(precision):
    """Six products of bfloat16 parts for each, or one of TF32: never what the hardware does by default."""
    heads = jax.ShapeDtypeStruct((1, 64, 1, 32), jnp.float32)

    def both(*qkv):
        attend = partial(chunked_attention, chunk_size=32, precision=precision, implementation="triton")
        o, pullback = jax.vjp(attend, *qkv)
        return pullback(o)

    for call in triton_calls(lower(both, heads, heads, heads, target="sm_90")):
        products = [line for line in str(parse(call.bytecode)).splitlines() if "tt.dot" in line]
        if precision == "tf32":
            assert products
            assert all("inputPrecision = tf32" in line for line in products)
        else:
            assert len(products) % 6 == 0 < len(products)
            assert all(line.count("bf16>") == 2 for line in products)


@pytest.mark.parametrize("length", [5, 40])
def test_prefill_from_the_middle_of_a_chunk_runs_the_kernel(length):
    model = models.build(compute_dtype=jnp.bfloat16)
    cache = init_cache(model.config, 2, allocate_kv=True, allocate_norm=True, allocate_ema=True)
    ids = jax.ShapeDtypeStruct((2, length), jnp.int32)
    with compile_for("sm_90"):
        run = jax.jit(lambda ids: model(ids, cache=cache, return_cache=True)[0])
        found = kernels_in(lower(run, ids, target="sm_90"))
    assert {FORWARD, "normalized_rotary_forward"} <= set(found)
