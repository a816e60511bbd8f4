"""`python -m bench report`: the ops beside their usual formulations, tried on the small problems of the tests."""

import json
from dataclasses import replace

import pytest

from bench import __main__ as command_line
from bench import environment, ops, parity
from bench.inspect import tools
from bench.parity import Errors, Line
from bench.performance import command, compiled, executed
from tests.markdown import ROOT, filled

EMA, NORM = "complex_ema: plain", "timestep_norm: plain"
FRESH = "timestep_norm: headline"


@pytest.fixture
def small(monkeypatch):
    """The problems of the tests instead of those of full size; nothing is compiled for a GPU."""
    monkeypatch.setattr(ops, "PRESETS", ops.PARITY)
    monkeypatch.setattr(tools, "missing", lambda: None)
    monkeypatch.setattr(compiled, "measure", lambda specs, _: [made_up(title) for title in specs])


def made_up(title: str) -> dict:
    one = {"bytes_moved": 2_000_000_000, "temporary_bytes": 0, "launches": 1}
    other = {"bytes_moved": 9_000_000_000, "temporary_bytes": 5_000_000_000, "launches": 70}
    figures = {compiled.KERNELS: one, compiled.REFERENCE: other}
    return {"title": title, "problem": "tiny", "mode": "forward", "implementations": figures}


def rows(text: str, name: str) -> list[list[str]]:
    return [cells for line in text.splitlines() if name in (cells := [cell.strip() for cell in line.split("|")])]


@pytest.mark.thorough
def test_both_halves_go_to_a_file(small, tmp_path, capsys):
    report, record = tmp_path / "report.md", tmp_path / "record.json"
    words = ["report", "--spec", EMA, NORM, "--rounds", "1", "--out", str(report), "--json", str(record)]
    command_line.main(words)
    text = report.read_text()
    assert text == capsys.readouterr().out
    assert f"`python -m bench report --spec '{EMA}' '{NORM}' --rounds 1 --out {report}`" in text
    assert rows(text, "XLA reference")[0][4:-1] == ["9.000", "4.5", "5.000", "70"]
    found = json.loads(record.read_text())
    assert [case["mode"] for case in found["executed"]] == 2 * ["forward", "forward+backward"]
    assert list(found["executed"][0]["implementations"]) == ["xla", "FFT convolution", "associative scan"]
    assert len(rows(text, "FFT convolution")) == len(rows(text, "cumulative sums")) == 2
    for case in found["executed"]:
        for one in case["implementations"].values():
            assert one["cpu_ms"] > 0
            assert one["ratio"] is not None
            assert 0 < one["error"]["relative_rms"] < 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {"report.md", "record.json"}


def test_what_does_not_fit_is_compiled_and_not_run(monkeypatch):
    spec = replace(ops.PARITY[EMA], length=40)
    monkeypatch.setattr(executed, "memory", lambda: 0)
    exact = {"passed": True, "error": {"value": "y", "relative_rms": 1e-7}}
    names = (executed.REFERENCE, *ops.of(spec).baselines(spec))
    monkeypatch.setattr(executed, "_errors", lambda *_: dict.fromkeys(names, exact))
    for case in executed.measure({EMA: spec}, 1):
        for one in case["implementations"].values():
            assert (one["cpu_ms"], one["ratio"], one["samples"]) == (None, None, [])
            assert one["temporary_bytes"] > 0


def test_no_ratio_beside_what_is_more_exact(monkeypatch):
    """Where ours is worse than the policy allows, a time beside it means nothing."""
    spec = ops.PARITY[NORM]
    wrong = Line("y", Errors(1e-3, 1e-3), Errors(1e-7, 1e-7), peak=1.0, dtype="float32", gradient=False)
    monkeypatch.setattr(parity, "compare_values", lambda *_: [wrong])
    found = executed._errors(spec, 0)
    assert not any(one["passed"] for one in found.values())
    assert found["cumulative sums"]["error"] == {"value": "y", "relative_rms": 1e-7}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--spec", "none"], "no spec 'none'"),
        (["--spec", "complex_ema: 7B, one token"], "nobody's usual formulation is known of"),
        (["--out", "missing-folder/report.md"], "expected a file in an existing folder"),
        (["--rounds", "0"], "expected a positive integer"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["report", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_command_that_a_report_names():
    def asked(*words: str) -> str:
        return command.asked(command_line._parser().parse_args(["report", *words]))

    assert asked("--out", "report.md", "--json", "record.json") == "python -m bench report --out report.md"
    assert asked("--spec", "7B", "--rows", "1") == "python -m bench report --spec 7B --rows 1"


def test_missing_wheels_are_one_line(monkeypatch):
    monkeypatch.setattr(tools, "missing", lambda: "no wheels")
    with pytest.raises(SystemExit, match="no wheels"):
        command_line.main(["report"])


def test_the_shipped_report_is_of_every_problem_and_form():
    text = (ROOT / "docs" / "report.md").read_text()
    shipped = command.with_formulations(command.NAMES)
    assert {title.split(":")[0] for title in shipped} == {"complex_ema", "timestep_norm", "chunked_attention"}
    halves = text.split("\n## ")[1:]
    assert [half.splitlines()[0] for half in halves] == ["Compiled for an H100", "Executed on a CPU"]
    for half in halves:
        for title, spec in shipped.items():
            assert rows(half, title)
            assert all(rows(half, name) for name in ops.of(spec).baselines(spec))


@pytest.mark.thorough
def test_a_shipped_figure_is_what_is_compiled_today():
    """Of the quickest problem, with the versions that the report names."""
    if reason := tools.missing():
        pytest.skip(reason)
    text = (ROOT / "docs" / "report.md").read_text()
    versions = tools.versions() | environment.versions()
    if not all(f"{name} {version}" in text for name, version in versions.items() if name != "python"):
        pytest.skip("docs/report.md is of other versions of jax or of the compilers")
    for case in compiled.measure({FRESH: ops.PRESETS[FRESH]}, command.TARGET):
        for name, one in case["implementations"].items():
            row = next(line for line in filled("docs/report.md") if is_of(line, FRESH, case["mode"], name))
            printed = [cell.strip() for cell in row.split("|")]
            assert printed[4] == f"{one['bytes_moved'] / 1e9:.3f}"
            assert printed[6:8] == [f"{one['temporary_bytes'] / 1e9:.3f}", str(one["launches"])]


def is_of(line: str, *cells: str) -> bool:
    """A row of a table that begins with these cells."""
    return tuple(cell.strip() for cell in line.split("|")[1 : 1 + len(cells)]) == cells
