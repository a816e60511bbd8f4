"""The benchmarks: baselines against the oracle, the measuring tools, and the command line."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import bench
from bench import __main__ as command_line
from bench import cpu_ops, report
from bench.accuracy import TENSORS, Error, error, oracle, out_of_bound
from bench.cases import Case, Measurement
from bench.measure import CpuTime, growth_exponent, interleaved, median_time
from bench.programs import IMPLEMENTATIONS, MODES, PACKED, compile_programs, random_inputs
from bench.targets import verdicts


@pytest.mark.parametrize("length", [1, 23])
def test_programs_agree_with_the_oracle(length):
    inputs = random_inputs(batch=2, length=length, features=3, states=2, mean_document=5, seed=1)
    *arrays, segment_ids = inputs
    plain, packed = oracle(*arrays), oracle(*arrays, segment_ids=segment_ids)
    for mode, tensors in zip(MODES, (("y",), TENSORS), strict=True):
        programs = compile_programs(inputs, mode)
        assert set(programs) == {*IMPLEMENTATIONS, PACKED}
        for name, program in programs.items():
            truth = packed if name == PACKED else plain
            for tensor, result in zip(tensors, program(), strict=True):
                assert error(result, truth[tensor]).relative_rms < 1e-5, (mode, name, tensor)
            assert program.temp_bytes() >= 0


def test_oracle_gradients_follow_the_convention_of_jax():
    *arrays, _ = random_inputs(batch=1, length=4, features=2, states=2, mean_document=4, seed=2)
    dy, _, p, q, gamma = arrays

    def loss(q):
        h, total = 0 * q, 0.0
        for t in range(4):
            h = q * h + p * arrays[1][0, t, :, None]
            total += (dy[0, t] * (gamma * h).sum(-1).real).sum()
        return total

    # JAX's gradient g of a real loss satisfies d loss = Re(g dq).
    step = 1e-6 * np.array([[1, 1j], [1 + 1j, 0]])
    q = q.astype(np.complex128)
    difference = (loss(q + step) - loss(q - step)) / 2
    np.testing.assert_allclose(difference, (oracle(*arrays)["q"] * step).sum().real, rtol=1e-5)


def test_inputs_are_reproducible_and_in_range():
    first, again = (random_inputs(2, 400, 3, 4, 20, seed=3) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    modulus = np.abs(first.q)
    assert modulus.min() > 0.6 - 1e-6
    assert modulus.max() < 0.999 + 1e-6
    assert first.segment_ids.min() >= 1
    assert first.segment_ids.max() > 5


def test_error_and_bound():
    truth = np.array([3.0, -4.0])
    found = error(np.array([3.0, -3.0]), truth)
    assert found.relative_rms == pytest.approx(0.2)
    assert found.max_abs == 1.0
    scan = {"y": Error(1e-6, 1e-3)}
    assert out_of_bound({"y": Error(2.9e-6, 1.0)}, scan) == []
    assert out_of_bound({"y": Error(3.1e-6, 0.0)}, scan) == ["y"]
    assert out_of_bound({"y": Error(math.nan, 0.0)}, scan) == ["y"]


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5, -2.0])
def test_growth_exponent_of_a_power_law(exponent):
    lengths = [64, 128, 512, 1000]
    assert growth_exponent(lengths, [3.0 * n**exponent for n in lengths]) == pytest.approx(exponent, abs=1e-12)


@pytest.mark.parametrize(("lengths", "costs"), [([64], [1.0]), ([64, 64], [1.0, 2.0]), ([64, 128], [0.0, 1.0])])
def test_growth_exponent_without_a_slope(lengths, costs):
    assert growth_exponent(lengths, costs) is None


def test_rounds_are_interleaved_and_every_other_one_reversed():
    calls = []

    def program(name):
        return lambda: calls.append(name)

    samples = interleaved({name: program(name) for name in "abc"}, rounds=3)
    order = [name for name, previous in zip(calls, [None, *calls], strict=False) if name != previous]
    assert "".join(order) == "abc" + "abc" + "ba" + "bc"  # warm-up, then three rounds; equal neighbours merged
    assert {name: len(s) for name, s in samples.items()} == dict.fromkeys("abc", 3)


def test_median_time():
    samples = [CpuTime(1.0, 5.0, 6.0), CpuTime(2.0, 1.0, 3.0), CpuTime(9.0, 0.0, 9.0)]
    assert median_time(samples) == CpuTime(2.0, 1.0, 6.0)


def made_up_case(mode: str, **milliseconds: float) -> Case:
    programs = {
        name: Measurement([CpuTime(ms, 0.0, ms)], CpuTime(ms, 0.0, ms), 100, {"y": Error(1e-7, 1e-6), "q": Error(0, 0)})
        for name, ms in milliseconds.items()
    }
    return Case(2048, mode, programs, [])


CASES = [
    made_up_case("forward", ours=10.0, fft=80.0, scan=9.0),
    made_up_case("forward+backward", ours=10.0, fft=40.0, scan=50.0),
]


def test_targets_are_judged_on_the_better_baseline():
    assert [(v.figure, v.met) for v in verdicts(CASES)] == [(0.9, False), (8.0, True), (4.0, True)]
    assert verdicts([replace(case, length=64) for case in CASES]) == []


def made_up_record(cases: list[Case]) -> dict:
    config = {"batch": 1, "features": 1, "states": 1, "dtype": "float32", "modulus": [0, 1], "rounds": 1, "seed": 0}
    config["mean_document"] = 1
    machine = {"cpu": "none", "cores": 1}
    load = {"before": 0.0, "after": 0.0}
    return {"versions": {}, "machine": machine, "config": config, "load_average": load, **cpu_ops.summary(cases)}


def test_no_ratio_is_shown_when_parity_failed():
    passed = report.text(made_up_record(CASES))
    assert "fft/ours" in passed
    assert "target forward, L = 2048: fft/ours >= 7: met (8.00)" in passed
    record = made_up_record([CASES[0], replace(CASES[1], parity_failures=["ours q"])])
    failed = report.text(record)
    assert "FAILED" in failed
    assert "forward+backward, L = 2048: ours q" in failed
    assert "/ours" not in failed
    assert record["targets"] is None
    assert [case["ratios"] for case in record["cases"]] == [None, None]


def test_json_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        report.write_json({"not": object()}, path)
    assert path.read_text() == "old"
    report.write_json({"a": 1}, path)
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["out.json"]


@pytest.mark.thorough
def test_cpu_command(tmp_path):
    path, png = tmp_path / "out.json", tmp_path / "out.png"
    finished = subprocess.run(
        [sys.executable, "-m", "bench", "cpu", "--lengths", "128", "64", "--rounds", "1", "--json", path, "--png", png],
        cwd=Path(bench.__file__).parents[1],
        env={**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"},  # most of the time is compilation
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    assert jax.__version__ in finished.stdout
    assert "Growth exponents" in finished.stdout
    assert png.read_bytes().startswith(b"\x89PNG")
    record = json.loads(path.read_text())
    assert set(record) == {
        "versions", "revision", "machine", "config", "load_average", "parity", "cases", "targets", "growth"
    }  # fmt: skip
    assert record["config"]["lengths"] == [64, 128]
    assert [(case["length"], case["mode"]) for case in record["cases"]] == [(n, m) for n in (64, 128) for m in MODES]
    for case in record["cases"]:
        assert list(case["programs"]) == [*IMPLEMENTATIONS, PACKED]
        assert (case["ratios"] is not None) == record["parity"]["passed"]
        for program in case["programs"].values():
            assert len(program["samples"]) == 1
            assert set(program["median"]) == {"user_ms", "system_ms", "total_ms"}
            assert set(program["errors"]) == {"y"} if case["mode"] == "forward" else set(TENSORS)
            assert program["temp_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cpu", "--suite", "nonsense"], "invalid choice: 'nonsense'"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["cpu", "--lengths", "64", "0"], "expected a positive integer, got '0'"),
        (["cpu", "--lengths", "-5"], "expected a positive integer, got '-5'"),
        (["cpu", "--rounds", "two"], "expected a positive integer, got 'two'"),
        (["cpu", "--json", "missing-folder/out.json"], "expected a file in an existing folder"),
        (["cpu", "--suite", "model", "--png", "out.png"], "--png is not for --suite model"),
        ([], "required: command"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.thorough
def test_regressions():
    """The pytest-benchmark suite: its smallest op and nothing else, as it is asked for; not as a worker of this run."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    words = ["bench", "--benchmark-only", "-k", "feature_norm", "--benchmark-min-rounds=1", "--benchmark-max-time=0.01"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=Path(bench.__file__).parents[1],
        env=outside,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout
    assert "2 passed" in ended.stdout
    assert "feature_norm: heuristic tiles-forward-xla" in ended.stdout
