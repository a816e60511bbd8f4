"""What `bench gpu` times and compares, with made-up clocks."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import modes, ops, problems, tolerance
from bench.gpu import clock, roofline, suite_ops
from bench.gpu.cases import differences, measure
from bench.gpu.clock import Sample
from bench.inspect.targets import find_target
from bench.parity import Errors
from tests.gpu_cases import ROOF, built, case, fails, made_up, subject

Plane, Stream, Event = (namedtuple(*fields) for fields in (
    ("Plane", "name lines"), ("Stream", "name events"), ("Event", "start_ns duration_ns"),
))  # fmt: skip


def test_a_gpu_is_busy_while_any_stream_is():
    streams = [
        Stream("Stream #1(Compute)", [Event(0, 10), Event(20, 10), Event(22, 3)]),
        Stream("Stream #2(Memcpy)", [Event(5, 10), Event(100, 1)]),
        Stream("XLA Modules", [Event(0, 1000)]),
    ]
    planes = [Plane("/host:CPU", [Stream("python", [Event(0, 999)])]), Plane("/device:GPU:0", streams)]
    assert clock.busy_ms(planes) == pytest.approx((15 + 10 + 1) / 1e6)
    assert clock.busy_ms(planes[:1]) is None


def test_a_profile_of_a_cpu_has_no_time_of_a_device():
    program = jax.jit(lambda x: x + 1)
    assert clock._device_ms(lambda: program(jnp.ones(3)).block_until_ready()) is None


def test_programs_are_compared_by_one_kind_of_time():
    both = [Sample(3.0, 1.0), Sample(4.0, 2.0)]
    assert clock.comparable({"a": both}) == ("device", {"a": [1.0, 2.0]})
    assert clock.comparable({"a": both, "b": [Sample(5.0)]}) == ("wall", {"a": [3.0, 4.0], "b": [5.0]})


def test_programs_take_turns_after_a_warm_up():
    calls = []
    run = lambda name: lambda: calls.append(name)  # noqa: E731
    samples = clock.interleaved({name: run(name) for name in "ab"}, 2, lambda run: (run(), Sample(1.0))[1])
    assert "".join(calls) == "aabb" + "ab" + "ba"
    assert {name: len(found) for name, found in samples.items()} == {"a": 2, "b": 2}


def test_the_flush_writes_more_than_the_cache_holds():
    flush = clock.l2_flush(4096)
    flush()
    flush()
    (held,) = next(cell.cell_contents for cell in flush.__closure__ or () if isinstance(cell.cell_contents, list))
    assert held.nbytes == 8192
    assert set(np.asarray(held)) == {2}


def test_figures_of_a_case():
    found = case(operations=10**9)
    triton = found["implementations"]["triton"]
    assert found["time"] == "device"
    assert triton["ms"] == 2.0
    assert triton["wall_ms"] == 1e3
    assert triton["speedup"] == 2.0
    assert triton["bytes_per_second"] == pytest.approx(1e6 / 2e-3)
    assert triton["operations_per_second"] == pytest.approx(1e9 / 2e-3)
    assert triton["of_roofline"] == pytest.approx(0.5)  # 1 MB at 1 GB/s, and 1e9 operations at 1e12 a second


def test_no_speedup_without_parity():
    assert case(unproven=("triton",))["implementations"]["triton"]["speedup"] is None
    wrong = case(values=(1.0, 1.1))["implementations"]["triton"]
    assert wrong["speedup"] is None
    assert not wrong["difference"]["within"]
    assert case(values=(1.0, float("nan")))["implementations"]["triton"]["speedup"] is None


def test_what_does_not_compile_is_named_and_the_others_measured():
    found = measure(
        subject({"xla": lambda: built("xla"), "triton": fails(RuntimeError("ptxas\nsays no"))}),
        made_up(xla=1.0), 1, ROOF,
    )  # fmt: skip
    assert list(found["implementations"]) == ["xla"]
    assert found["failures"] == {"triton": "RuntimeError: ptxas says no"}
    alone = measure(
        subject({"xla": fails(MemoryError("all")), "triton": lambda: built("triton")}), made_up(triton=1.0), 1, ROOF
    )
    assert alone["implementations"]["triton"]["speedup"] is None


def test_values_are_computed_in_a_dtype():
    values, expected = {"a": np.float32([1.01])}, {"a": np.float32([1.0])}
    assert [differences(values, expected, dtype)[0].within for dtype in (None, "bfloat16")] == [False, True]


def test_different_values_are_an_error():
    with pytest.raises(ValueError, match="expected"):
        differences({"a": np.ones(2)}, {"b": np.ones(2)})


def test_agreement():
    assert tolerance.agree(Errors(1e-6, 1e-5), "float32")
    assert not tolerance.agree(Errors(1e-5, 1e-5), "float32")
    assert not tolerance.agree(Errors(1e-6, 1e-3), "float32")
    assert not tolerance.agree(Errors(float("nan"), 0.0), "float32")


def test_public_rooflines():
    h100 = roofline.public(find_target("sm_90"))
    assert h100.bfloat16 == pytest.approx(949e12, rel=0.01)
    assert h100.float32 == pytest.approx(h100.bfloat16 / 6)
    assert h100.bound_ms(3_352_320, 0, "bfloat16") == pytest.approx(1e-3)
    assert h100.bound_ms(0, 2 * 10**12, "float32") > h100.bound_ms(0, 2 * 10**12, "bfloat16")


@pytest.mark.parametrize("mode", modes.MODES)
def test_modes_of_an_op(mode):
    """By both implementations on the same arrays; gradients have the names of what they are of."""
    spec = ops.PARITY["feature_norm: plain"]
    inputs = jax.tree.map(jnp.asarray, ops.of(spec).inputs(spec))
    both = [modes.build(spec, mode, implementation, inputs, 0) for implementation in ("xla", "triton_interpret")]
    reference, kernels = (one.values(one.run()) for one in both)
    outputs = {"output"} if mode != modes.BACKWARD else set()
    gradients = {"dx", "dweight", "dbias"} if mode in (modes.BACKWARD, modes.FORWARD_BACKWARD) else set()
    assert set(reference) == outputs | gradients
    assert all(one.within for one in differences(kernels, reference))
    assert all(one.memory.argument_size_in_bytes > 0 for one in both)


def test_an_op_that_gives_its_gradients_has_two_modes():
    spec = ops.PARITY["linear_cross_entropy: whole blocks"]
    assert modes.modes(spec) == (modes.FORWARD, modes.FORWARD_BACKWARD)
    assert modes.modes(ops.PARITY["complex_ema: plain"]) == modes.MODES


@pytest.mark.parametrize("mode", modes.MODES)
def test_operations_of_the_modes_add_up(mode):
    spec = ops.PRESETS["fused_linear: 512 to 2048"]
    product = 2 * 8 * 2048 * 512 * 2048
    times = {modes.FORWARD: 1, modes.RESIDUALS: 1, modes.BACKWARD: 2, modes.FORWARD_BACKWARD: 3}
    assert suite_ops.operations(spec, mode) == times[mode] * product


def test_the_oracle_gets_what_it_has_room_for():
    for title, spec in ops.PRESETS.items():
        short = problems.shortened(spec)
        assert problems._numbers(short) <= problems.ORACLE, title
        assert getattr(short, "batch", 1) == 1
    assert problems.shortened(ops.PRESETS["complex_ema: 7B"]).length == 1024
    attention = problems.shortened(ops.PRESETS["chunked_attention: 7B"])
    assert (attention.heads, attention.length) == (1, 2 * attention.chunk)  # a boundary of chunks is crossed
    plain = ops.PARITY["complex_ema: plain"]
    assert problems.shortened(plain).length == plain.length


def test_specs_by_name():
    assert len(problems.chosen(ops.PRESETS, ["fused_linear"])) > 5
    assert set(problems.chosen(ops.PRESETS, suite_ops.NAMES)) > {"complex_ema: headline", "timestep_norm: headline"}
    assert (
        {ops.of(spec).NAME for spec in problems.chosen(ops.PRESETS, suite_ops.NAMES).values()}
        == {ops.of(spec).NAME for spec in problems.chosen(ops.PARITY, suite_ops.TINY).values()}
        == {ops.of(spec).NAME for spec in ops.PRESETS.values()}
    )
    with pytest.raises(ValueError, match="no spec 'none'"):
        problems.chosen(ops.PRESETS, ["none"])
    longer = suite_ops.at_lengths({"a": ops.PARITY["complex_ema: plain"]}, [8, 16])
    assert {title: spec.length for title, spec in longer.items()} == {"a, L = 8": 8, "a, L = 16": 16}
