"""`python -m bench gpu` without a GPU, and on CPU as the device at tiny shapes."""

import json
from dataclasses import replace

import jax
import pytest

from bench import __main__ as command_line
from bench import model_programs, modes, ops
from bench.gpu import command, compare, device, roofline, session, suite_model, suite_ops, suite_parity
from bench.gpu import report as markdown
from bench.gpu.clock import Sample
from bench.parity import Errors
from pallas_kernels import compile_for, strict
from tests.gpu_cases import ROOF, line


def test_without_a_gpu_one_line_says_so(capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["gpu"])
    assert stopped.value.code == command.NO_DEVICE
    (line,) = capsys.readouterr().err.splitlines()
    assert "no NVIDIA GPU here: " in line


@pytest.mark.parametrize("error", [RuntimeError("the plugin\nis too old"), AssertionError()])
def test_the_line_says_what_jax_says_and_what_it_was_told(error, monkeypatch):
    def fails(*_):
        raise error

    monkeypatch.setattr(jax, "devices", fails)
    monkeypatch.setattr(jax, "default_backend", fails)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    said = " ".join(str(error).split()) or "none of the platforms"
    for platform, name in (("gpu", "NVIDIA GPU"), ("cpu", "CPU")):
        with pytest.raises(device.NoDevice, match=rf"^no {name} here: {said}.* \(JAX_PLATFORMS=cuda is set\)"):
            device.find(platform)
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(device.NoDevice) as stopped:
        device.find("gpu")
    assert "JAX_PLATFORMS" not in str(stopped.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--spec", "none"], "no spec 'none'"),
        (
            ["--spec", "headline"],
            "no spec 'headline'; --device cpu has the tiny problems of the tests alone; ",
        ),
        (["--spec", "complex_ema: plan"], "close to it: 'complex_ema: plain', "),
        (["--suite", "parity", "--spec", "headline"], "--suite parity has the problems of the tests alone"),
        (["--suite", "parity", "--mode", "forward"], "--mode is not for --suite parity"),
        (["--suite", "parity", "--lengths", "7"], "--lengths is not for --suite parity"),
        (["--suite", "parity", "--rounds", "3"], "--rounds is not for --suite parity"),
        (["--suite", "training", "--mode", "forward"], "--mode is not for --suite training"),
        (["--suite", "model", "--spec", "model S"], "--spec is not for --suite model --device cpu"),
        (["--out", __file__], f"expected a folder to write into, got {__file__!r}: File exists"),
        (["--out", f"{__file__}/deep"], f"expected a folder to write into, got '{__file__}/deep': Not a directory"),
        (["--mode", "sideways"], "invalid choice: 'sideways'"),
        (
            ["--spec", "linear_cross_entropy: whole blocks", "--mode", "backward"],
            "none of linear_cross_entropy: whole blocks has the mode backward",
        ),
        (["--lengths", "0"], "expected a positive integer, got '0'"),
    ],
)
def test_bad_arguments(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(roofline, "of_device", lambda *_: ROOF)
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["gpu", "--device", "cpu", *arguments])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert len(printed.splitlines()[-1]) < 350
    with pytest.raises(ValueError, match="no model 'none'"):
        suite_model.chosen(["none"])


@pytest.fixture
def cpu(monkeypatch):
    """A session on CPU in which kernels are interpreted."""
    monkeypatch.setattr(roofline, "of_device", lambda *_: ROOF)
    return replace(session.begin("cpu", rounds=1, seed=0), kernel="triton_interpret")


def test_fresh_inputs_are_timed_and_those_of_the_tests_compared(monkeypatch):
    monkeypatch.setattr(roofline, "of_device", lambda *_: ROOF)
    first, second, given = (session.begin("cpu", seed=seed) for seed in (None, None, 7))
    assert first.seed != second.seed
    assert first.parity_seed == second.parity_seed == 0
    assert (given.seed, given.parity_seed) == (7, 7)


def test_kernels_beside_the_reference(cpu):
    title = "feature_norm: plain"
    found = suite_ops.run({title: ops.PARITY[title]}, cpu, only=[modes.FORWARD_BACKWARD])
    (entry,), (one,) = found["parity"], found["cases"]
    assert entry["passed"]
    assert {line["name"] for line in entry["lines"]} == {"y", "dx", "dweight", "dbias"}
    assert set(one["implementations"]) == {"xla", "triton_interpret"}
    assert one["implementations"]["triton_interpret"]["speedup"] > 0
    assert one["time"] == "wall"
    assert "feature_norm: plain" in markdown.text(found)
    json.dumps(found)


@pytest.mark.thorough
def test_a_kernel_that_is_wrong_has_no_speedup(cpu, monkeypatch):
    spec = ops.PARITY["feature_norm: plain"]
    wrong = lambda *_: [line(kernel=Errors(1.0, 1.0))]  # noqa: E731
    monkeypatch.setattr(suite_ops.parity, "compare", wrong)
    found = suite_ops.run({"feature_norm: plain": spec}, cpu, only=[modes.FORWARD])
    assert found["cases"][0]["implementations"]["triton_interpret"]["speedup"] is None


@pytest.mark.thorough
def test_command_on_cpu(tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    command_line.main(
        ["gpu", "--device", "cpu", "--spec", "complex_ema: plain", "--mode", "forward", "--lengths", "8", "16",
         "--rounds", "1", "--seed", "3", "--out", str(out)]
    )  # fmt: skip
    assert "FFT convolution" in capsys.readouterr().out
    written = {path.name for path in out.iterdir()}
    assert written == {"record.json", "report.md", "time.png", "error.png", "roofline.png"}
    found = compare.read(out / "record.json")
    assert [one["length"] for one in found["cases"]] == [8, 16]
    assert found["config"] == {"rounds": 1, "seed": 3, "parity_seed": 3, "kernel": None}
    command_line.main(["compare", *[str(out / "record.json")] * 2])
    assert "1.000" in capsys.readouterr().out


@pytest.mark.thorough
def test_without_kernels_nothing_is_tested(capsys):
    command_line.main(["gpu", "--device", "cpu", "--suite", "parity", "--spec", "feature_norm: one token"])
    printed = capsys.readouterr().out
    assert "Kernels were not tested." in printed
    assert "passed" not in printed


@pytest.mark.thorough
def test_parity_of_interpreted_kernels(cpu):
    title = "feature_norm: plain"
    (entry,) = suite_parity.run({title: ops.PARITY[title]}, cpu)["parity"]
    assert entry["passed"]
    errors = [(line["kernel"]["relative_rms"], line["reference"]["relative_rms"]) for line in entry["lines"]]
    assert any(kernel != reference for kernel, reference in errors)


@pytest.mark.thorough
@pytest.mark.parametrize("suite", ["inference", "training"])
def test_models_beside_each_other(cpu, suite):
    """Interpreted kernels, matmuls fused; a decoding step and a step of the optimizer go on from their own results."""
    found = suite_model.run(suite, {"tiny": suite_model.TINY}, cpu)
    assert [entry["passed"] for entry in found["parity"]] == [True, True]
    assert [one["mode"] for one in found["cases"]] == list(suite_model.SUITES[suite])
    for one in found["cases"]:
        assert set(one["implementations"]) == {"XLA", "kernels", "fused matmuls"}
        assert one["failures"] == {}
        assert [figures["difference"]["within"] for figures in one["implementations"].values()] == [True] * 3


@pytest.mark.parametrize("name", model_programs.PROGRAMS)
def test_no_kernel_of_a_model_refuses(name):
    """What `build` asks for on a GPU, traced for one."""
    for backend in ("default", "fused"):
        shape = replace(suite_model.TINY, config=replace(suite_model.TINY.config, gemm_backend=backend))
        jitted, abstract = model_programs.program(name, shape)
        with compile_for("sm_90"), strict():
            jax.eval_shape(jitted, *abstract)


def test_operations_of_a_model():
    shape = suite_model.TINY
    forward, training = (suite_model.operations(name, shape) for name in ("forward", "training"))
    assert training == 3 * forward
    assert suite_model.operations("decode", shape) * shape.length == forward


def test_a_device_is_described():
    cpu = jax.devices("cpu")[0]
    assert device.describe(cpu)["platform"] == "cpu"
    assert device.card(cpu) is None
    assert device.cache_bytes(cpu) > 2**26
    assert device.target_name(cpu) == "cpu"
    assert roofline.measured(cpu, lambda run: (run(), Sample(1.0, 2.0))[1]).bandwidth == pytest.approx(
        2 * roofline.COPIED / roofline.TRIED_OUT / 2e-3
    )
