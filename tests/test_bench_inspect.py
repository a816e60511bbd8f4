"""`python -m bench inspect`: both suites end to end, what they write, and that their verdicts can fail."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bench
from bench import __main__ as command_line
from bench import figures, inspect_ops, inspect_parity, ops, parity, report, static_targets
from bench.inspect import tools
from bench.programs import MODES
from pallas_kernels.timestep_norm.specs import HEADLINE, LONG, PARITY, PRESETS

needs_tools = pytest.mark.skipif(tools.missing() is not None, reason=str(tools.missing()))

TOKEN = "7B, one token"


@needs_tools
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
        "presets, sm_90",
    ):
        assert expected in finished.stdout
    record = json.loads(path.read_text())
    assert list(record) == ["versions", "targets"]
    assert [target["target"] for target in record["targets"]] == ["sm_90", "sm_80"]
    for target in record["targets"]:
        assert target["verdicts"] == []  # the targets are those of the headline problem
        (entry,) = target["specs"]
        assert (entry["spec"]["name"], entry["spec"]["dtype"]) == (TOKEN, "bfloat16")
        assert list(entry["kernels"]) == list(entry["xla"]) == list(MODES)
        for mode in MODES:
            ours, reference = entry["kernels"][mode], entry["xla"][mode]
            assert 0 < ours["bytes_moved"] <= reference["bytes_moved"]
            assert reference["bytes_issued"] is None
            assert reference["kernels"] == []
            assert ours["kernels"]
            for kernel in ours["kernels"]:
                assert kernel["registers"] > 0
                assert kernel["work"]["tiles"] == 1


@needs_tools
@pytest.mark.parametrize("name", ["one sequence", "headline, packed"])
def test_figures_of_kernels_with_several_loops_and_chunks(name):
    program = figures.figures(inspect_ops.SPECS[name], "forward", "triton", "sm_90", work=True)
    assert program.bytes_issued is not None
    assert program.bytes_issued <= static_targets.ISSUED * program.bytes_moved
    assert all(kernel.work.issue_us > 0 for kernel in program.kernels)
    if name == "one sequence":
        assert [kernel.name for kernel in program.kernels] == ["timestep_norm_forward_totals", "timestep_norm_forward"]
        assert {kernel.chunks for kernel in program.kernels} == {9}
        assert {kernel.work.tiles for kernel in program.kernels} == {15}  # of 128 in all
        x = 2 * 32768 * 1024
        assert [kernel.work.bytes_moved // x for kernel in program.kernels] == [1, 2]


def made_up(**changes):
    work = figures.Work(10, 4, 1.0, 100, 110, issue_us=1.0, memory_us=2.0, unit="issue")
    kernel = figures.KernelFigures("k", 8, 1, 128, 32, 0, 0, 0, 16, "threads", 0, 0, work)
    program = figures.ProgramFigures(100, 110, 1, 0, 0, (kernel,))
    return {mode: replace(program, **changes) for mode in MODES}


def test_targets_can_be_missed():
    def missed(programs):
        return [verdict.target for verdict in static_targets.verdicts(HEADLINE, programs) if not verdict.met]

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


def test_missing_wheels_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr(tools, "missing", lambda: "no wheels")
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["inspect"])
    assert stopped.value.code == "no wheels"  # printed by Python on the way out, with exit status 1
    assert capsys.readouterr().out == ""


def test_parity_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tools, "missing", lambda: "no wheels")  # parity needs none
    path = tmp_path / "out.json"
    command_line.main(["inspect", "--suite", "parity", "--spec", "one token", "--json", str(path)])
    printed = capsys.readouterr().out
    assert "Parity: passed, 7 outputs and gradients" in printed
    assert printed.count(" ok\n") == 3
    record = json.loads(path.read_text())
    assert list(record) == ["versions", "seed", "policy", "passed", "specs"]
    assert record["passed"] is True
    (entry,) = record["specs"]
    assert entry["spec"] == "one token"
    names = ["y", "state mean", "state var", "state count", "dx", "dweight", "dbias"]
    assert [line["name"] for line in entry["lines"]] == names
    for line in entry["lines"]:
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
        command_line.main(["inspect", "--suite", "parity", "--spec", "one token", "--json", str(path)])
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert "Parity: FAILED" in printed
    assert f"one token: {name} (" in printed
    lines = json.loads(path.read_text())["specs"][0]["lines"]
    assert [line["name"] for line in lines if not line["within"]] == [name]


def test_suites_know_every_spec():
    assert list(inspect_ops.SPECS.values()) == list(PRESETS)
    assert list(inspect_parity.SPECS.values()) == [*PARITY, *LONG]


def test_table_alignment():
    assert report.table(["a", "b"], [["1", "22"], ["333", "4"]]) == "  a   b\n  1  22\n333   4"
    assert report.table(["a", "b"], [["1", "22"], ["333", ""]], left=1) == "a     b\n1    22\n333"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "nonsense"], "invalid choice: 'nonsense'"),
        (["--target", "sm_70"], "invalid choice: 'sm_70'"),
        (["--spec", "plain"], "no spec 'plain' in suite ops; its specs are: headline; headline, float32; "),
        (["--suite", "parity", "--spec", "headline"], "no spec 'headline' in suite parity; its specs are: one token; "),
        (["--suite", "parity", "--target", "sm_90"], "--target is for --suite ops"),
        (["--json", "missing-folder/out.json"], "expected a file in an existing folder"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["inspect", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
