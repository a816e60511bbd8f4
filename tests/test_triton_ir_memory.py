"""The Triton IR interpreter: each seeded fault of memory is caught and named; addresses of huge arrays."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from bench.inspect.triton_ir import (
    FaultKind,
    KernelFault,
    check_addresses,
    execute,
    run_kernel,
)
from tests.triton_toys import INT, F, S, fault_of, kernel, normal, rows, the_call, whole


def masked_copy(x, length, *, mask_load=True, mask_store=True, block=64):
    """Copy by blocks that do not divide the length, with masks of our own."""

    def body(x_ref, y_ref):
        at = pl.program_id(0) * block
        inside = at + jnp.arange(block) < length
        tile = plt.load(x_ref.at[pl.ds(at, block)], mask=inside if mask_load else None, other=0 if mask_load else None)
        plt.store(y_ref.at[pl.ds(at, block)], tile, mask=inside if mask_store else None)

    spec = whole(length)
    return kernel(body, S((length,), F), grid=(pl.cdiv(length, block),), in_specs=[spec], out_specs=spec)(x)


def test_ragged_tail_with_masks():
    x = normal(100)
    y, [report] = execute(lambda x: masked_copy(x, 100), x)
    np.testing.assert_array_equal(y, x)
    assert (report.bytes_loaded, report.bytes_stored) == (400, 400)  # masked lanes do not count


def test_missing_mask_on_a_ragged_tail():
    x = normal(100)
    fault = fault_of(lambda x: masked_copy(x, 100, mask_store=False), x)
    assert fault.kind == FaultKind.OUT_OF_BOUNDS_STORE
    assert fault.cell == (1, 0, 0)
    assert "64..127 of result 0 float32[100]" in fault.detail
    assert "test_triton_ir_memory.py" in fault.where
    assert fault_of(lambda x: masked_copy(x, 100, mask_load=False), x).kind == FaultKind.OUT_OF_BOUNDS_LOAD


def test_masked_lanes_without_other_are_poison():
    def body(x_ref, y_ref):
        y_ref[...] = plt.load(x_ref.at[pl.ds(0, 32)], mask=jnp.arange(32) < 20)

    y, _ = execute(kernel(body, S((32,), F)), normal(32))
    assert np.isnan(np.asarray(y)).tolist() == [False] * 20 + [True] * 12


def test_dynamic_slice_past_the_end_which_interpret_mode_clamps():
    def body(start_ref, x_ref, y_ref):
        y_ref[...] = x_ref[pl.ds(start_ref[0], 64)]

    start, x = np.int32([64]), normal(100)
    clamped = kernel(body, S((64,), F), interpret=True)(start, x)
    np.testing.assert_array_equal(clamped, x[36:])  # silently other elements than were asked for
    fault = fault_of(kernel(body, S((64,), F)), start, x)
    assert fault.kind == FaultKind.OUT_OF_BOUNDS_LOAD
    assert "64..127 of operand 1" in fault.detail
    y, _ = execute(kernel(body, S((64,), F)), np.int32([36]), x)
    np.testing.assert_array_equal(y, x[36:])


def test_two_cells_writing_one_block():
    def body(x_ref, y_ref):
        y_ref[...] = x_ref[...] + pl.program_id(0).astype(F)

    spec = whole(32)
    race = kernel(body, S((32,), F), grid=(2,), in_specs=[spec], out_specs=spec)
    assert fault_of(race, normal(32)).kind == FaultKind.WRITE_RACE
    _, [report] = execute(race, normal(32), collect=True)
    assert [fault.kind for fault in report.faults] == [FaultKind.WRITE_RACE]
    assert "32 elements of result 0" in report.faults[0].detail


def neighbour_body(x_ref, y_ref):
    """Each cell adds its left neighbour's block to its own; the array is updated in place."""
    i = pl.program_id(0)
    left = x_ref[pl.ds(jnp.maximum(i - 1, 0) * 32, 32)]
    y_ref[pl.ds(i * 32, 32)] = left + 1


@pytest.mark.parametrize("order", ["sequential", (2, 1, 0), (1, 2, 0)])
def test_reading_what_another_cell_writes(order):
    spec = whole(96)
    options = {"grid": (3,), "in_specs": [spec], "out_specs": spec}
    in_place = kernel(neighbour_body, S((96,), F), input_output_aliases={0: 0}, **options)
    call = the_call(in_place, S((96,), F))
    assert call.aliases == {0: 0}
    with pytest.raises(KernelFault) as caught:
        run_kernel(call, [normal(96)], order=order)
    assert caught.value.fault.kind == FaultKind.READ_WRITE_RACE
    two_arrays = the_call(kernel(neighbour_body, S((96,), F), **options), S((96,), F))
    _, report = run_kernel(two_arrays, [normal(96)], order=order)
    assert report.faults == ()


def test_aliased_result_keeps_what_is_not_written():
    def body(x_ref, y_ref):
        y_ref[pl.ds(0, 32)] = x_ref[pl.ds(0, 32)] * 2

    x = normal(64)
    y, [report] = execute(kernel(body, S((64,), F), input_output_aliases={0: 0}), x)
    np.testing.assert_array_equal(y, np.concatenate([x[:32] * 2, x[32:]]))
    assert len(report.buffers) == 1


def test_missing_store():
    def body(x_ref, y_ref):
        @pl.when(pl.program_id(0) != 1)
        def _():
            y_ref[...] = x_ref[...]

    spec = rows(32)
    call = kernel(body, S((96,), F), grid=(3,), in_specs=[spec], out_specs=spec)
    fault = fault_of(call, normal(96))
    assert (fault.kind, fault.cell) == (FaultKind.UNWRITTEN_OUTPUT, None)
    assert fault.detail.startswith("32 of 96 elements of result 0")
    y, _ = execute(call, normal(96), collect=True)
    assert np.isnan(np.asarray(y)).tolist() == [False] * 32 + [True] * 32 + [False] * 32


def test_uninitialised_read():
    def body(x_ref, y_ref):
        y_ref[...] += x_ref[...]

    assert fault_of(kernel(body, S((32,), F)), normal(32)).kind == FaultKind.UNINITIALISED_READ


def test_duplicate_addresses_in_one_store():
    def body(i_ref, y_ref):
        y_ref[i_ref[...]] = jnp.arange(32)

    scatter = kernel(body, S((32,), INT))
    places = np.random.default_rng(0).permutation(32).astype(np.int32)
    y, _ = execute(scatter, places)
    np.testing.assert_array_equal(y, np.argsort(places))
    places[3] = places[7]
    fault = fault_of(scatter, places)
    assert fault.kind == FaultKind.DUPLICATE_ADDRESS
    assert f"the first at offset {places[7]}" in fault.detail


def test_store_to_an_input():
    def body(x_ref, y_ref):
        y_ref[...] = x_ref[...]
        x_ref[...] = jnp.zeros((32,), F)

    assert fault_of(kernel(body, S((32,), F)), normal(32)).kind == FaultKind.STORE_TO_INPUT


def big_copy(dtype, length):
    def body(x_ref, y_ref):
        y_ref[...] = x_ref[...]

    spec = rows(4096)
    aval = S((length,), dtype)
    return the_call(kernel(body, aval, grid=(length // 4096,), in_specs=[spec], out_specs=spec), aval)


def test_offsets_past_int32():
    """Pallas computes offsets in int32 up to 2^32 bytes: too late for bytes, whose offsets pass 2^31 before that."""
    length = 2**31 + 8192
    with pytest.raises(KernelFault) as caught:
        check_addresses(big_copy(jnp.int8, length))
    assert caught.value.fault.kind == FaultKind.ADDRESS_OVERFLOW
    assert check_addresses(big_copy(jnp.int8, 2**31)).buffers[0].highest == 2**31 - 1
    report = check_addresses(big_copy(F, length))  # 64-bit offsets
    assert report.buffers[1].highest == length - 1
    assert 3 <= report.cells <= 4
    with pytest.raises(KernelFault) as caught:  # block index times block size is int32 even then
        check_addresses(big_copy(F, 5 * 2**30))
    assert caught.value.fault.kind == FaultKind.ADDRESS_OVERFLOW
    assert check_addresses(big_copy(F, 5 * 2**30), cells=[7]).buffers[0].lowest == 7 * 4096


def test_addresses_only_catches_a_wrong_index_map():
    def body(x_ref, y_ref):
        y_ref[...] = x_ref[...]

    length = 2**20
    shifted = pl.BlockSpec((1024,), lambda i: (i + 1,))
    grid = (length // 1024,)
    aval = S((length,), F)
    call = the_call(kernel(body, aval, grid=grid, in_specs=[shifted], out_specs=rows(1024)), aval)
    with pytest.raises(KernelFault) as caught:
        check_addresses(call)
    assert caught.value.fault.kind == FaultKind.OUT_OF_BOUNDS_LOAD
    assert caught.value.fault.cell == (1023, 0, 0)
    assert check_addresses(call, cells=range(1023)).faults == ()


def test_addresses_that_come_from_an_operand():
    def body(i_ref, x_ref, y_ref):
        y_ref[...] = x_ref[pl.ds(i_ref[0], 64)]

    call = the_call(kernel(body, S((64,), F)), S((1,), INT), S((2**33,), F))
    assert check_addresses(call).buffers[1].highest == 63
    assert check_addresses(call, inputs={0: np.int32([1000])}).buffers[1].highest == 1063
