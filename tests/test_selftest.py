"""`python -m megalodon_jax selftest` with made-up processes, and once with a real one, on CPU."""

import json
import math
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bench.gpu import checks, command, suite_ops, suite_parity
from bench.ops import PARITY, PRESETS, find
from megalodon_jax.cli import selftest, selftest_report
from megalodon_jax.cli.main import main
from megalodon_jax.cli.selftest_report import Outcome, Result
from pallas_kernels import KernelUnavailable
from pallas_kernels._settings import OPS


def entry(passed: bool = True, reason: str = "", share: float = 0.5) -> dict:
    lines = [] if reason else [{"name": "dx", "share": share, "within": passed}]
    return {"title": "op: plain", "passed": passed, "reason": reason, "lines": lines}


def case(speedup: float | None = 2.0, within: bool = True, **failures: str) -> dict:
    kernel = {"triton": {"speedup": speedup, "difference": {"name": "dx", "within": within}}}
    return {
        "title": "op: headline", "mode": "forward", "failures": failures,
        "implementations": {} if "triton" in failures else kernel,
    }  # fmt: skip


def outcome(parity=(), cases=(), kernel: str | None = "triton") -> Outcome:
    return Outcome({"parity": list(parity), "cases": list(cases), "config": {"kernel": kernel}}, "the report")


CRASHED = Outcome(None, "a long\ntraceback", "the process ended with -11: a long traceback")


def test_what_counts_as_a_failure():
    assert outcome([entry()], [case()]).failures == []
    assert outcome([entry(False)]).failures == ["op: plain: wrong in dx"]
    assert outcome([entry(False, "ptxas says no")]).failures == ["op: plain: ptxas says no"]
    assert outcome([], [case(triton="too large")]).failures == ["op: headline, forward: too large"]
    assert outcome([], [case(within=False)]).failures == ["op: headline, forward: dx differs from that of xla"]
    assert outcome([], [case(**{"FFT convolution": "out of memory"})]).failures == []
    assert CRASHED.failures == [CRASHED.reason]


def test_the_table_and_the_switch():
    good = Result("complex_ema", outcome([entry(), entry(share=0.9)]), outcome([entry()], [case()]))
    results = [good, Result("fused_linear", CRASHED), Result("feature_norm", outcome([entry(False, share=3.0)]))]
    table = selftest_report.summary(results)
    assert "| complex_ema  | 2 of 2 | 0.90 " in table
    assert "2.00" in table
    assert "FAILED fused_linear: the process ended with -11" in table
    assert 'export PALLAS_KERNELS_IMPLEMENTATION="fused_linear=xla,round_weights=xla,feature_norm=xla"' in table
    assert "use_implementation(fused_linear='xla', round_weights='xla', feature_norm='xla')" in table
    assert selftest_report.verdict([good]) == "Every kernel passed."
    text = selftest_report.text(table, results, "jax 1.0")
    assert text.startswith("# megalodon-pallas selftest")
    assert all(part in text for part in ("jax 1.0", "the report", "a long\ntraceback"))


def test_a_refusal_is_no_failure():
    said = checks.said(KernelUnavailable("complex_ema", "triton", "the card is too old", "Use xla."))
    refused = outcome([entry(False, said), entry(False, said)])
    assert refused.failures == []
    table = selftest_report.summary([Result("complex_ema", refused)])
    assert "| complex_ema | refused | -                     | -  |" in table
    assert table.count("refused: complex_ema: implementation 'triton' is not available: the card is too old") == 1
    assert "nothing to switch off" in table
    assert "export" not in table
    partly = Result("complex_ema", outcome([entry(), entry(False, said)]), outcome([entry()], [case(triton=said)]))
    assert partly.failures == []
    assert "1 of 2" in selftest_report.summary([partly])
    both = selftest_report.summary([Result("complex_ema", refused), Result("feature_norm", outcome([entry(False)]))])
    assert 'export PALLAS_KERNELS_IMPLEMENTATION="feature_norm=xla"' in both


def test_what_was_not_tested_is_not_said_to_be_right():
    good, none = Result("complex_ema", outcome([entry()])), Result("fused_linear", outcome([entry()], kernel=None))
    for other in (none, Result("fused_linear")):
        table = selftest_report.summary([good, other])
        assert "| fused_linear | not tested | -                     | -" in table
        assert table.endswith("Not tested, without a GPU or not yet: fused_linear.")


def test_the_worst_share_is_one_that_is_no_number():
    results = Result("complex_ema", outcome([entry(share=0.1), entry(False, share=math.nan), entry(share=0.5)]))
    assert "| nan                   | op: plain, dx |" in selftest_report.summary([results])
    nothing = Result("complex_ema", outcome([entry(False, "ptxas says no")]))
    assert "| 0 of 1 | -                     | -  |" in selftest_report.summary([nothing])


def ending(code: int | None = 0, record: dict | None = None, stderr: str = ""):
    """In the place of `subprocess.run`; without a code the process hangs."""

    def run(arguments, **options):
        folder = arguments[arguments.index("--out") + 1]
        if record is not None:
            for name, text in (("record.json", json.dumps(record)), ("report.md", "a report")):
                with open(f"{folder}/{name}", "w") as file:
                    file.write(text)
        options["stderr"].write(stderr)
        options["stderr"].flush()
        if code is None:
            raise subprocess.TimeoutExpired("bench", options["timeout"])
        return SimpleNamespace(returncode=code)

    return run


def test_processes(monkeypatch):
    monkeypatch.setattr(subprocess, "run", ending(1, {"parity": []}))
    assert selftest.bench([], 1.0) == Outcome({"parity": []}, "a report")
    monkeypatch.setattr(subprocess, "run", ending(-11, None, "W0\nmeasuring x ...\nSegmentation fault"))
    found = selftest.bench([], 1.0)
    assert found.failures == ["the process ended with -11: W0 measuring x ... Segmentation fault"]
    monkeypatch.setattr(subprocess, "run", ending(None, None, "comparing x ...\n"))
    assert selftest.bench([], 60.0).failures == ["no answer after 1 minutes: comparing x ..."]
    monkeypatch.setattr(subprocess, "run", ending(selftest.NO_DEVICE, None, "W0000 x\nbench gpu: no NVIDIA GPU here"))
    with pytest.raises(selftest.CommandError, match=r"^bench gpu: no NVIDIA GPU here"):
        selftest.bench([], 1.0)


@pytest.mark.parametrize(
    ("code", "stderr", "message"),
    [
        (
            1,
            "Traceback\nModuleNotFoundError: No module named 'bench.gpu'",
            "ended with 1: .*No module named 'bench.gpu'",
        ),
        (1, "while comparing notes, CUDA did not start", "CUDA did not start"),
        (0, "", "ended with 0: without a word"),
        (selftest.NO_DEVICE, "", "ended with 3"),
        (None, "starting", "no answer after 1 minutes: starting"),
    ],
)
def test_no_kernel_is_blamed_where_none_was_reached(code, stderr, message, monkeypatch):
    monkeypatch.setattr(subprocess, "run", ending(code, None, stderr))
    with pytest.raises(selftest.CommandError, match=message):
        selftest.bench(["--spec", "complex_ema"], 60.0)


def test_what_tells_that_a_kernel_was_reached(monkeypatch, capsys):
    monkeypatch.setattr(suite_parity, "check", lambda *_, **__: {})
    monkeypatch.setattr(suite_ops, "check", lambda *_: {"passed": True})
    monkeypatch.setattr(suite_ops, "subjects", lambda *_, **__: ())
    for suite in (suite_parity, suite_ops):
        suite.run({"complex_ema: plain": None}, SimpleNamespace(record=lambda *_: {}))
        assert selftest.STARTED.search(f"noise\n{capsys.readouterr().err}")


def test_environment(monkeypatch):
    def run(command, timeout, **_):
        assert timeout == selftest.PATIENCE
        if command[0] == "nvidia-smi":
            raise subprocess.TimeoutExpired(command, timeout)
        return SimpleNamespace(returncode=1, stdout="versions\n", stderr="no driver")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    found = selftest.environment()
    assert found.startswith("versions\n")
    assert "megalodon_jax doctor ended with 1: no driver" in found
    assert found.endswith("nvidia-smi: no answer after 60 seconds")


def test_command(monkeypatch, tmp_path, capsys):
    asked = []

    def bench(arguments, seconds):
        asked.append(arguments)
        return outcome([entry("complex_ema" in " ".join(arguments))], [case()] if "ops" in arguments else [])

    monkeypatch.setattr(selftest, "bench", bench)
    monkeypatch.setattr(selftest, "environment", lambda: "jax 1.0")
    report = tmp_path / "report.md"
    assert main(["selftest", "--op", "complex_ema", "fused_linear", "--out", str(report)]) == 1
    assert "FAILED fused_linear: op: plain: wrong in dx" in capsys.readouterr().out
    assert "jax 1.0" in report.read_text()
    assert [arguments[1] for arguments in asked] == ["parity", "ops", "parity"]  # no times of what is wrong
    assert main(["selftest", "--op", "complex_ema", "--out", str(report)]) == 0
    assert main(["selftest", "--op", "complex_ema", "--out", str(tmp_path / ("x" * 255))]) == 2  # no room beside it


@pytest.mark.parametrize("error", [KeyboardInterrupt(), selftest.CommandError("CUDA does not start")])
def test_what_was_found_outlives_what_comes_after(error, monkeypatch, tmp_path, capsys):
    order = []

    def bench(arguments, seconds):
        order.append(arguments[3])
        if "fused_linear" in arguments:
            raise error
        return outcome([entry()], [case()] if "ops" in arguments else [])

    monkeypatch.setattr(selftest, "bench", bench)
    monkeypatch.setattr(selftest, "environment", lambda: order.append("environment") or "jax 1.0")
    report = tmp_path / "report.md"
    assert main(["selftest", "--op", "complex_ema", "fused_linear", "--out", str(report)]) in (2, 130)
    assert order[0] == "environment"
    for text in (report.read_text(), capsys.readouterr().out):
        assert "| complex_ema  | 1 of 1" in text
        assert "not yet: fused_linear." in text
    assert list(tmp_path.iterdir()) == [report]


def test_a_kernel_that_refuses_is_not_timed(monkeypatch, tmp_path):
    monkeypatch.setattr(selftest, "bench", lambda arguments, _: outcome([entry(False, "KernelUnavailable: too old")]))
    monkeypatch.setattr(selftest, "environment", lambda: "jax 1.0")
    assert selftest.test("complex_ema", "gpu", 1.0).times is None
    assert main(["selftest", "--op", "complex_ema", "--out", str(tmp_path / "report.md")]) == 0


@pytest.mark.parametrize("out", ["{}", "{}/none/report.md", "/proc/report.md", "{}/" + 300 * "x"])
def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(out, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["selftest", "--out", out.format(tmp_path)])
    assert "argument --out: " in capsys.readouterr().err


@pytest.mark.thorough
def test_a_folder_named_bench_where_it_runs_is_not_ours(monkeypatch, tmp_path):
    (tmp_path / "bench").mkdir()
    for name in ("__init__", "__main__"):
        (tmp_path / "bench" / f"{name}.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    words = ["--suite", "parity", "--device", "cpu", "--spec", "feature_norm: plain"]
    assert (selftest.bench(words, 300.0).record or {})["suite"] == "parity"


def test_it_asks_for_what_there_is():
    assert selftest.NO_DEVICE == command.NO_DEVICE
    beside = [op for others in selftest_report.TESTED_WITH.values() for op in others]
    assert {*selftest.OPS, *beside} == set(OPS)
    for op in selftest.OPS:
        assert find(PARITY, op)
        assert find(PRESETS, f"{op}: {selftest.TIMED.get(op, 'headline')}")


def test_without_a_gpu(capsys, tmp_path):
    assert main(["selftest", "--out", str(tmp_path / "report.md")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "no NVIDIA GPU here" in line


@pytest.mark.thorough
def test_it_can_be_tried_out_on_cpu(tmp_path):
    report = tmp_path / "report.md"
    arguments = ["--device", "cpu", "--op", "linear_cross_entropy", "--out", str(report)]
    words = [sys.executable, "-m", "megalodon_jax", "selftest", *arguments]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert "| linear_cross_entropy | not tested |" in ended.stdout
    assert "## Errors" in report.read_text()
