"""`python -m bench inspect`: its suites end to end, what they write, and that their verdicts can fail."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import bench
from bench import __main__ as command_line
from bench import (
    compile_times,
    ema_targets,
    figures,
    inspect_parity,
    norm_targets,
    ops,
    parity,
    report,
    work,
)
from bench.inspect import tools
from bench.programs import MODES
from pallas_kernels.chunked_attention.specs import Spec as AttentionSpec
from pallas_kernels.complex_ema.specs import HEADLINE as EMA_HEADLINE
from pallas_kernels.complex_ema.specs import Spec as EmaSpec
from pallas_kernels.timestep_norm.specs import HEADLINE
from pallas_kernels.timestep_norm.specs import Spec as NormSpec

needs_tools = pytest.mark.skipif(tools.missing() is not None, reason=str(tools.missing()))

TOKEN = "7B, one token"


@needs_tools
@pytest.mark.thorough
def test_ops_command(tmp_path):
    path = tmp_path / "out.json"
    finished = subprocess.run(
        [sys.executable, "-m", "bench", "inspect", "--target", "sm_90", "sm_80", "--spec", TOKEN, "--json", path],
        cwd=Path(bench.__file__).parents[1],
        check=True,
        capture_output=True,
        text=True,
    )
    for expected in (
        f"ptxas {tools.find('ptxas').version}",
        "nothing was run or timed on one; times are a model",
        "sm_80: NVIDIA A100-SXM4-80GB",
        f"{TOKEN}: timestep_norm, B = 8, L = 1, D = 4096, G = 64, bfloat16, token_mean, state",
        f"{TOKEN}: complex_ema, B = 8, L = 1, D = 4096, N = 16, bfloat16, omega, h0, returned",
        "presets of timestep_norm, sm_90",
        "presets of complex_ema, sm_80",
    ):
        assert expected in finished.stdout
    record = json.loads(path.read_text())
    assert list(record) == ["versions", "revision", "targets"]
    assert [target["target"] for target in record["targets"]] == ["sm_90", "sm_80"]
    for target in record["targets"]:
        assert [entry["op"] for entry in target["specs"]] == ["timestep_norm", "complex_ema"]
        for entry in target["specs"]:
            assert entry["verdicts"] == []  # the targets are those of the headline problems
            assert (entry["spec"]["name"], entry["spec"]["dtype"]) == (TOKEN, "bfloat16")
            assert list(entry["others"]) == ["XLA reference"]
            for mode in MODES:
                ours, reference = entry["kernels"][mode], entry["others"]["XLA reference"][mode]
                assert ours["bytes_moved"] > 0
                assert reference["bytes_moved"] > 0
                assert reference["bytes_issued"] is None
                assert reference["kernels"] == []
                assert ours["cpu_seconds"] > 0
                assert ours["kernels"]
                for kernel in ours["kernels"]:
                    assert kernel["registers"] > 0
                    assert kernel["work"]["tiles"] == 1


@needs_tools
@pytest.mark.parametrize("name", ["one sequence", "headline, packed"])
def test_figures_of_kernels_with_several_loops_and_chunks(name):
    spec = ops.PRESETS[f"timestep_norm: {name}"]
    program = figures.figures(spec, "forward", "triton", "sm_90", detailed=True)
    assert program.bytes_issued is not None
    assert program.bytes_issued <= norm_targets.ISSUED * program.bytes_moved
    assert all(kernel.work.issue_us > 0 for kernel in program.kernels)
    if name == "one sequence":
        assert [kernel.name for kernel in program.kernels] == ["timestep_norm_forward_totals", "timestep_norm_forward"]
        assert {kernel.tile["chunks"] for kernel in program.kernels} == {9}
        assert {kernel.work.tiles for kernel in program.kernels} == {15}  # of 128 in all
        x = 2 * 32768 * 1024
        assert [kernel.work.bytes_moved // x for kernel in program.kernels] == [1, 2]


def made_up(**changes):
    done = work.Work(10, 4, 1.0, 100, 0, 0, 100, 110, 0, issue_us=1.0, memory_us=2.0, unit="issue")
    kernel = figures.KernelFigures("k", {"tokens": 8}, 128, 32, 0, 0, 0, 16, "threads", 0, 0, done, None)
    program = figures.ProgramFigures(100, 110, 0, 0, 1, 0, 0, 1.0, (kernel,))
    return {mode: replace(program, **changes) for mode in MODES}


def test_targets_can_be_missed():
    def missed(programs):
        return [verdict.target for verdict in norm_targets.verdicts(HEADLINE, programs) if not verdict.met]

    (kernel,) = made_up()["forward"].kernels
    slow = replace(kernel, work=replace(kernel.work, issue_us=3.0))
    statistic = 4 * HEADLINE.batch * HEADLINE.groups * HEADLINE.length
    assert missed(made_up()) == []
    assert missed(made_up(largest_intermediate=statistic)) == []
    for changes, name in (
        ({"bytes_moved": int(0.381e9)}, "GB moved"),
        ({"bytes_issued": 131}, "issued / moved"),
        ({"kernels": (kernel, replace(kernel, spill_bytes=4))}, "bytes spilled"),
        ({"largest_intermediate": statistic + 1}, "largest intermediate"),
        ({"kernels": (kernel, slow)}, "modelled issue time"),
    ):
        found = missed(made_up(**changes))
        assert len(found) == 2
        assert all(name in target for target in found)


def test_targets_of_complex_ema_can_be_missed():
    (kernel,) = made_up()["forward"].kernels
    three = tuple(replace(kernel, name=f"complex_ema_{name}") for name in ("ends", "join", "forward"))

    def missed(kernels=three, **changes):
        programs = made_up(kernels=kernels, **changes)
        verdicts = ema_targets.plain(EMA_HEADLINE, programs) + ema_targets.packed(EMA_HEADLINE, programs)
        return [verdict.target for verdict in verdicts if not verdict.met]

    def with_work(name, **changes):
        return [replace(one, work=replace(one.work, **changes)) if name in one.name else one for one in three]

    assert missed() == []
    for changes, name, times in (
        ({"bytes_moved": int(1.01e9)}, "GB moved", 3),
        ({"bytes_issued": 131}, "issued", 6),
        ({"bytes_issued": 131, "bytes_cached": 5}, "issued / moved", 3),
        ({"temporary_bytes": int(0.31e9)}, "GB of temporary memory", 2),
        ({"kernels": (*three, replace(kernel, spill_bytes=4))}, "bytes spilled", 3),
        ({"kernels": (*three, replace(kernel, stack_bytes=8))}, "bytes spilled", 3),
        ({"kernels": with_work("forward", per_element=95.1)}, "SASS per element, complex_ema_forward <= 95", 1),
        ({"kernels": with_work("ends", per_element=60.1)}, "SASS per element, complex_ema_ends <= 60", 1),
        ({"kernels": with_work("ends", products=6)}, "(FMUL + FADD) / FFMA, complex_ema_ends", 1),
        ({"kernels": with_work("forward", fused=0, sums=1)}, "(FMUL + FADD) / FFMA, complex_ema_forward", 1),
    ):
        found = missed(**changes)
        assert len(found) == times
        assert all(name in target for target in found)


@pytest.mark.skipif(tools.missing() is not None, reason=str(tools.missing()))
def test_compile_times_of_each_kernel():
    spec = ops.PARITY["timestep_norm: one token"]
    seconds = compile_times.kernel_seconds(*ops.of(spec).program(spec, "forward+backward", "triton"))
    assert list(seconds) == ["timestep_norm_forward", "timestep_norm_backward"]
    assert all(spent > 0 for spent in seconds.values())
    quick, slow = compile_times.verdicts({"quick": 29.9, "slow": 30.1})
    assert (quick.met, slow.met) == (True, False)


@pytest.mark.parametrize(
    ("spec", "formulations"),
    [
        (EmaSpec("plain", 2, 50, 5, 3), (ops.ema.FFT, ops.ema.SCAN)),
        (EmaSpec("packed", 2, 50, 5, 3, segments=True), (ops.ema.SCAN,)),
        (NormSpec("plain", 2, 50, 6, 3), (ops.norm.SUMS,)),
        (AttentionSpec("plain", 2, 48, 2, 4, 10, 16), (ops.attention.DENSE, ops.attention.VALUE_TILES)),
        (AttentionSpec("ragged", 2, 50, 2, 4, 10, 16), (ops.attention.DENSE,)),
    ],
)
def test_formulations_compute_the_op(spec, formulations):
    op = ops.of(spec)
    arrays = op.inputs(spec)
    if "segment_ids" in arrays:  # no padding: the formulation knows none
        arrays["segment_ids"] = np.repeat([[1, 1, 2, 5, 5], [3, 1, 1, 2, 2]], 10, axis=1).astype(np.int32)
    arrays = jax.device_put(arrays)
    assert op.baselines(spec) == formulations
    expected = jax.jit(op.values(spec, "xla"))(arrays)
    for name in formulations:
        found = jax.jit(op.values(spec, name))(arrays)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-4 * np.abs(value).max(), err_msg=key)


def test_formulations_leave_what_they_do_not_know_to_the_op():
    others = (
        EmaSpec("masked", 2, 50, 5, 3, mask=True),
        EmaSpec("state", 2, 50, 5, 3, returned=True),
        NormSpec("packed", 2, 50, 6, 3, segments=True),
        NormSpec("all features", 2, 50, 6, 3, statistics="all_features"),
        NormSpec("not affine", 2, 50, 6, 3, affine=False),
        AttentionSpec("gated", 2, 48, 2, 4, 10, 16, gated=True),
        AttentionSpec("continued", 2, 48, 2, 4, 10, 16, cached=16),
    )
    assert not [spec for spec in others if ops.of(spec).baselines(spec)]


@pytest.mark.parametrize("suite", ["ops", "model"])
def test_missing_wheels_are_one_line(suite, monkeypatch, capsys):
    monkeypatch.setattr(tools, "missing", lambda: "no wheels")
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["inspect", "--suite", suite])
    assert stopped.value.code == "no wheels"  # printed by Python on the way out, with exit status 1
    assert capsys.readouterr().out == ""


@pytest.mark.thorough
def test_parity_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tools, "missing", lambda: "no wheels")  # parity needs none
    path = tmp_path / "out.json"
    both = ["timestep_norm: one token", "complex_ema: one step"]
    command_line.main(["inspect", "--suite", "parity", "--spec", *both, "--json", str(path)])
    printed = capsys.readouterr().out
    assert "Parity: passed, 15 outputs and gradients" in printed
    assert printed.count(" ok\n") == 6
    record = json.loads(path.read_text())
    assert list(record) == ["versions", "revision", "seed", "policy", "passed", "specs"]
    assert record["passed"] is True
    entry, other = record["specs"]
    assert (entry["op"], entry["spec"]) == ("timestep_norm", "one token")
    assert (other["op"], other["spec"]) == ("complex_ema", "one step")
    assert [line["name"] for line in other["lines"]] == ["y", "state", "dx", "dp", "dq", "dgamma", "domega", "dh0"]
    names = ["y", "state mean", "state var", "state count", "dx", "dweight", "dbias"]
    assert [line["name"] for line in entry["lines"]] == names
    for line in entry["lines"] + other["lines"]:
        for of in ("triton_interpret", "lowered", "xla"):
            assert set(line[of]) == {"relative_rms", "max_abs"}
        assert 0 <= line["share"] <= 1


@pytest.mark.parametrize("rung", inspect_parity.RUNGS)
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("y", lambda y: y + np.float32(1e-5)),
        ("dweight", lambda g: np.where(np.arange(g.size) == 3, g + np.float32(1e-4), g)),
        ("dx", lambda g: np.full_like(g, np.nan)),
        ("state count", lambda n: n + np.int32([0, 1])),
    ],
)
def test_parity_can_fail(rung, name, wrong, monkeypatch, tmp_path, capsys):
    def evaluate(spec, arrays, asked):
        """The oracle's values rounded, as every kernel and reference; one of them wrong."""
        exact = ops.of(spec).truth(spec, arrays)
        found = {key: value.astype(np.int32 if "count" in key else np.float32) for key, value in exact.items()}
        return found | ({name: wrong(found[name])} if asked == rung else {})

    monkeypatch.setattr(parity, "evaluate", evaluate)
    path = tmp_path / "out.json"
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["inspect", "--suite", "parity", "--spec", "timestep_norm: one token", "--json", str(path)])
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert "Parity: FAILED" in printed
    assert f"timestep_norm: one token, {name} (" in printed
    lines = json.loads(path.read_text())["specs"][0]["lines"]
    assert [line["name"] for line in lines if not line["within"]] == [name]


def test_parity_shows_the_usual_form_of_long_memories(monkeypatch, capsys):
    def evaluate(spec, arrays, asked):
        """The oracle's values, but for y of the FFT convolution, which is wrong by 1."""
        exact = ops.of(spec).truth(spec, arrays)
        found = {
            key: value.astype(np.complex64 if np.iscomplexobj(value) else np.float32) for key, value in exact.items()
        }
        scale = parity.scale(exact["y"])
        return found | ({"y": exact["y"] + scale} if asked == "FFT convolution" else {})

    monkeypatch.setattr(parity, "evaluate", evaluate)
    names = ["complex_ema: plain", "complex_ema: packed", "timestep_norm: plain"]
    command_line.main(["inspect", "--suite", "parity", "--spec", *names])
    assert "FFT" not in capsys.readouterr().out
    monkeypatch.setattr(inspect_parity, "LONG_MEMORY", 1)
    command_line.main(["inspect", "--suite", "parity", "--spec", *names])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "FFT" in line]
    assert [row[:2] for row in rows] == [["plain", name] for name in ("y", "dx", "dp", "dq", "dgamma", "domega")]
    assert rows[0][-3:] == ["1.0e+00", "/", "1.0e+00"]


def test_names_of_specs():
    every = ["timestep_norm: headline", "complex_ema: headline", "chunked_attention: headline"]
    every += ["normalized_rotary: headline", "feature_norm: headline"]
    assert list(ops.find(ops.PRESETS, "headline")) == every
    assert ops.find(ops.PRESETS, "complex_ema: headline") == {"complex_ema: headline": EMA_HEADLINE}
    assert list(ops.find(ops.PRESETS, "32 states")) == ["complex_ema: 32 states"]
    of_ema = [title for title in ops.PRESETS if title.startswith("complex_ema: ")]
    assert list(ops.find(ops.PRESETS, "complex_ema")) == of_ema
    assert ops.find(ops.PRESETS, "ema") == {}
    assert ops.PRESETS["timestep_norm: headline"] == HEADLINE


def test_table_alignment():
    assert report.table(["a", "b"], [["1", "22"], ["333", "4"]]) == "  a   b\n  1  22\n333   4"
    assert report.table(["a", "b"], [["1", "22"], ["333", ""]], left=1) == "a     b\n1    22\n333"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "nonsense"], "invalid choice: 'nonsense'"),
        (["--target", "sm_70"], "invalid choice: 'sm_70'"),
        (["--spec", "plain"], "no spec 'plain'; --suite ops has others; all of an op: timestep_norm, "),
        (["--suite", "parity", "--spec", "headline"], "no spec 'headline'; --suite parity has others; "),
        (["--suite", "model", "--spec", "headline"], "--spec is not for --suite model"),
        (["--suite", "parity", "--target", "sm_90"], "--target is not for --suite parity"),
        (["--suite", "toeplitz", "--target", "sm_80"], "--target is not for --suite toeplitz"),
        (["--suite", "tiles", "--target", "sm_80"], "--target is not for --suite tiles"),
        (["--suite", "model", "--seed", "1"], "--seed is not for --suite model"),
        (["--suite", "parity", "--seed", "-1"], "expected an integer in [0, 2^32)"),
        (["--suite", "toeplitz", "--spec", "headline"], "--spec is not for --suite toeplitz"),
        (["--json", "missing-folder/out.json"], "expected a file in an existing folder"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["inspect", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
