"""What `bench gpu` reports and draws of its records, and how `bench compare` compares them."""

import json

import numpy as np
import pytest

from bench import __main__ as command_line
from bench import environment, report
from bench.gpu import checks, compare, plots, session
from bench.gpu import report as markdown
from bench.parity import Errors
from tests.gpu_cases import case, fails, line


def test_entries_of_parity():
    good = checks.entry("a", "sizes", 8, lambda: [line()])
    bad = checks.entry("a", "sizes", 8, lambda: [line(), line(kernel=Errors(1.0, 1.0))], "kernels")
    broken = checks.entry("a", "sizes", 8, lambda: fails(RuntimeError("illegal\naddress"))())
    assert (good["passed"], bad["passed"], broken["passed"]) == (True, False, False)
    assert broken["reason"] == "RuntimeError: illegal address"


def record(cases=(), parity=(), **changes) -> dict:
    return {
        "format": session.FORMAT, "suite": "ops", "versions": {"jax": "0.1"}, "revision": "abc", "variables": {},
        "device": {"kind": "made up", "target": "sm_90", "runtime": "cuda"}, "machine": {},
        "config": {"rounds": 3, "seed": 1, "parity_seed": 0, "kernel": "triton"},
        "roofline": {"bandwidth": 1e9, "bfloat16": 1e12, "float32": 1e11, "source": "made up"},
        "parity": list(parity), "cases": list(cases), **changes,
    }  # fmt: skip


def test_report_says_what_passed_and_what_was_not_compared():
    failed = checks.entry("op: two", "sizes", 8, lambda: [line(kernel=Errors(1.0, 1.0))])
    reason = checks.entry("op: three", "sizes", 8, lambda: fails(RuntimeError("no"))())
    passed = checks.entry("op: one", "sizes", 8, lambda: [line()])
    cases = [case(operations=10**9), case(values=(1.0, 1.1)), {**case(), "failures": {"scan": "out of memory"}}]
    text = markdown.text(record(cases, [passed, failed, reason]))
    assert "1 of 3 passed" in text
    assert text.count("- op: one: sizes\n") == 2  # what was compared, what was timed
    assert "RuntimeError: no" in text
    assert "out of memory" in text
    assert "y differs from the reference's by 1.0e-01" in text
    assert "2.00" in text
    assert "median device time" in text
    assert "**No kernels**" not in text
    for row in (rows := [row for row in text.splitlines() if row.startswith("|")]):
        assert row.endswith("|"), rows
    alone = markdown.text(record([], [passed], config={"rounds": 1, "seed": 1, "parity_seed": 0, "kernel": None}))
    assert "**No kernels**" in alone
    assert "Kernels were not tested." in alone
    assert "passed" not in alone
    assert "## Times" not in alone


def test_pictures(tmp_path):
    cases = [{**case(operations=n), "length": n} for n in (0, 512, 1024)]
    parity = [checks.entry(f"op: one, L = {n}", "sizes", n, lambda: [line()]) for n in (8, 16)]
    written = plots.save(record(cases, parity), tmp_path)
    assert [path.name for path in written] == ["time.png", "error.png", "roofline.png"]
    assert plots.save(record(), tmp_path) == []
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in tmp_path.iterdir())


def test_compare_says_what_is_noise(tmp_path):
    r = np.random.default_rng(0)
    noisy = lambda ms: list(ms * (1 + 0.02 * r.standard_normal(20)))  # noqa: E731
    for after, expected in ((1.0, "noise"), (1.2, "slower"), (0.8, "faster"), (1.01, "noise")):
        assert compare.verdict(*compare.ratio(noisy(1.0), noisy(after))) == expected
    assert compare.verdict(*compare.ratio([1.0, 3.0, 2.0, 2.0, 1.0], [2.5, 1.2, 9.0, 1.0, 2.0])) == "noise"
    assert compare.verdict(*compare.ratio([1.0] * 4, [9.0] * 20)) == compare.TOO_FEW
    a = tmp_path / "a.json"
    report.write_json(record([case()]), a)
    again = compare.text(compare.read(a), record([case()]))
    assert again == compare.text(record([case()]), record([case()]))
    assert "noise" in again
    assert "same device" in again
    other = compare.text(compare.read(a), record([case()], device={"kind": "B200", "runtime": "cuda"}, revision="def"))
    assert "The devices differ" in other
    assert "revision: abc in A, def in B" in other
    flags = compare.text(compare.read(a), record([case()], variables={"XLA_FLAGS": "--a"}))
    assert "XLA_FLAGS: None in A, --a in B" in flags
    with pytest.raises(ValueError, match="no program in common"):
        compare.text(compare.read(a), record())


def test_compare_names_what_only_one_record_has():
    """A kernel that failed in B, with the reason; the same title with another problem; two kinds of time."""
    without = case()
    del without["implementations"]["triton"]
    failed = {**without, "failures": {"triton": "RuntimeError: ptxas says no"}}
    text = compare.text(record([case()]), record([failed]))
    assert "- op: one (sizes), forward, triton: only in A: RuntimeError: ptxas says no" in text.splitlines()
    text = compare.text(record([without]), record([case()]))
    assert "- op: one (sizes), forward, triton: only in B" in text.splitlines()
    longer = {**case(), "problem": "longer"}
    text = compare.text(record([case(), longer]), record([case()]))
    assert "- op: one (longer), forward, xla: only in A" in text.splitlines()
    with pytest.raises(ValueError, match="no program in common"):
        compare.text(record([case()]), record([longer]))
    wall = {**case(mode="backward"), "time": "wall"}
    text = compare.text(record([case(), case(mode="backward")]), record([case(), wall]))
    assert "- op: one (sizes), backward, triton: device time in A, wall time in B" in text.splitlines()
    assert "Not compared" not in compare.text(record([case()]), record([case()]))


@pytest.mark.parametrize("unproven", [{"unproven": ("triton",)}, {"values": (1.0, 1.1)}])
def test_compare_rates_nothing_without_parity(unproven):
    wrong = case(**unproven)
    wrong["implementations"]["triton"]["samples_ms"] = [1.0] * 3
    for pair in ((case(), wrong), (wrong, case())):
        reference, kernel = compare.text(*(record([one]) for one in pair)).splitlines()[-2:]
        assert "noise" in reference
        assert "not proven" in kernel
        assert "faster" not in kernel
        assert "0.500" not in kernel


def test_compare_shows_other_options():
    config = {"rounds": 5, "seed": 2, "parity_seed": 0, "kernel": "triton"}
    text = compare.text(record([case()]), record([case()], config=config))
    assert "- rounds: 3 in A, 5 in B\n" in text
    assert "seed" not in text  # one is new each time, the other the same
    without = compare.text(record([case()]), record([case()], config={**config, "kernel": None}))
    assert "- **No GPU**, no verdicts: " in without
    assert "noise" not in without


def test_compare_takes_the_folder(tmp_path):
    report.write_json(record([case()]), tmp_path / "record.json")
    assert compare.read(tmp_path) == compare.read(tmp_path / "record.json")


def damaged() -> list[str]:
    """Records without one of the parts that are compared."""
    parts = [json.loads(json.dumps(record([case()]))) for _ in range(5)]
    del parts[0]["device"]["runtime"], parts[1]["cases"][0]["failures"], parts[4]["config"]["kernel"]
    del parts[2]["cases"][0]["implementations"]["triton"]["speedup"]
    parts[3]["cases"][0]["implementations"]["triton"]["samples_ms"] = []
    return [json.dumps(part) for part in parts]


@pytest.mark.parametrize("content", ["[]", "{", '{"format": 0}', '{"format": 1}', 9999 * "[", None])
def test_compare_wants_a_record(tmp_path, content, capsys):
    file = tmp_path / "a.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["compare", str(file), str(file)])
    assert stopped.value.code == 2
    assert str(file) in capsys.readouterr().err


@pytest.mark.parametrize("content", damaged())
def test_compare_names_a_damaged_record(tmp_path, content):
    file = tmp_path / "a.json"
    file.write_text(content)
    with pytest.raises(ValueError, match="is damaged, a part of the record is missing"):
        compare.read(file)


def test_variables():
    given = {"XLA_FLAGS": "--a", "HOME": "/", "JAX_PLATFORMS": "cpu"}
    assert environment.variables(given) == {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--a"}


def test_revision():
    found = environment.revision()
    assert found is None or len(found.rstrip("+")) == 40
