"""The command line: each subcommand on a tiny model, and every kind of bad input."""

import contextlib
import gzip
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax import MegalodonConfig, MegalodonForCausalLM
from megalodon_jax.checkpoint import CONFIG, WEIGHTS, load_checkpoint, save_checkpoint
from megalodon_jax.cli import data, defaults, display, generate, loop, sampling
from megalodon_jax.cli.compressors import baselines, unigram_entropy
from megalodon_jax.cli.main import main
from megalodon_jax.training import loop as training
from megalodon_jax.training import python_text
from megalodon_jax.training.batches import fixed_windows
from megalodon_jax.training.metrics import read_metrics
from megalodon_jax.training.sources import read_tokens
from megalodon_jax.training.splits import split
from pallas_kernels import use_implementation
from pallas_kernels._settings import OPS
from tests import models

TINY = MegalodonConfig(
    vocab_size=256, model_dim=32, num_layers=1, z_dim=16, value_dim=32, ffn_hidden_dim=32, cema_ndim=2, chunk_size=32,
    norm_num_groups=16, pad_token_id=None, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
# What of TINY is not a default of byte models, as the model section of a config.
SECTION = {name: getattr(TINY, name) for name in (
    "model_dim", "num_layers", "z_dim", "value_dim", "ffn_hidden_dim", "cema_ndim", "chunk_size", "norm_num_groups",
)}  # fmt: skip
TEXT = b"".join(b"%d green bottles hanging on the wall\n" % (count % 10) for count in range(400))

CACHE_SETTINGS = {
    "jax_compilation_cache_dir": None,  # set by the fixture
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def run(*arguments: object) -> tuple[int, str]:
    """Exit code and stdout; warnings are errors, so anything JAX complains about fails here."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main([str(argument) for argument in arguments])
    return code, out.getvalue()


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Every command compiles its own programs; here the same ones come from disk after the first time."""
    previous = {name: getattr(jax.config, name) for name in CACHE_SETTINGS}
    for name, value in CACHE_SETTINGS.items():
        jax.config.update(name, str(tmp_path_factory.mktemp("compiled")) if value is None else value)
    yield
    for name, value in previous.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text.txt").write_bytes(TEXT)
    settings = {
        "run_dir": str(folder / "run"), "steps": 60, "batch_size": 4, "output_std": 0.02, "megalodon": SECTION,
        "data": {"path": str(folder / "text.txt"), "sequence_length": 64},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 3}, "evaluation": {"every": 20, "windows": None},
        "checkpoint": {"every": 50}, "log": {"every": 5}, "samples": {"every": 40, "prompt_length": 9, "length": 5},
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(json.dumps(settings))  # which is YAML too
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """Stdout and checkpoint of one short run."""
    code, out = run("train", "--config", folder / "tiny.yaml")
    assert code == 0
    return out, folder / "run" / "final"


def test_train_learns_and_writes_its_files(trained, folder):
    out, final = trained
    assert sorted(os.listdir(folder / "run")) == ["checkpoints", "config.yaml", "final", "metrics.jsonl"]
    assert sorted(os.listdir(final)) == [CONFIG, WEIGHTS]
    assert sorted(os.listdir(folder / "run" / "checkpoints"), key=int) == ["50", "60"]
    assert load_checkpoint(final).config == TINY
    validation = [float(bits) for bits in re.findall(r"validation ([\d.]+) bits/byte", out)]
    assert len(validation) == 4
    assert validation[0] == pytest.approx(8, rel=0.1)
    assert validation[-1] < unigram_entropy(np.frombuffer(TEXT, np.uint8)) < validation[0]
    assert f"best validation loss is {min(validation):.3f} bits/byte" in out
    assert "bytes/s" in out
    assert "goes on" in out
    assert str(final) in out


def test_saved_model_reaches_the_loss_that_was_recorded(trained, folder):
    parts = split(read_tokens(folder / "text.txt"), "auto")
    windows = fixed_windows(parts.validation, 64, None)
    model = load_checkpoint(trained[1])
    loss = jax.jit(
        lambda model: model.compute_loss(jnp.asarray(windows.inputs), jnp.asarray(windows.targets), shift=False)
    )
    records = read_metrics(folder / "run" / "metrics.jsonl")
    (recorded,) = (
        record["validation_loss"] for record in records if record["step"] == 60 and "validation_loss" in record
    )
    assert float(loss(model)) == pytest.approx(recorded, rel=1e-4)


def test_plot_draws_runs_into_one_picture(trained, folder):
    code, out = run("plot", folder / "run", folder / "run", "--out", folder / "curves.png")
    assert (code, out) == (0, f"wrote {folder / 'curves.png'}\n")
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_records_in_words():
    record = {"step": 5, "train_loss": 2.0, "train_bits": 2.885, "tokens_per_second": 1234.4, "step_seconds": 0.05}
    record |= {"device_memory": 2**30, "mfu": 0.256, "skipped": 3}
    expected = "train 2.885 bits/byte   1234 bytes/s, 50 ms/step   25.6 % of peak   1.00 GiB   3 steps skipped"
    assert display.describe(record, "byte") == expected
    assert display.describe({"train_bits": None}, "token") == "train not finite bits/token"


@pytest.mark.thorough
def test_loss_of_the_default_model_at_step_0_is_that_of_guessing():
    model = defaults.initial_model(defaults.MODEL, seed=0)
    ids = jnp.asarray(data.load_corpus(None, 128).train[:256].reshape(2, 128).astype(np.int32))
    loss = jax.jit(lambda model, ids: model.compute_loss(ids, ids))
    assert float(loss(model, ids)) == pytest.approx(math.log(256), rel=0.1)


def test_generate_repeats_per_seed(trained):
    _, checkpoint = trained
    first, again, other = (run("generate", checkpoint, "--prompt", "9", "--tokens", 60, "--seed", s) for s in (1, 1, 2))
    assert first == again
    assert first[0] == 0
    assert first[1].startswith("9")
    assert first[1] != other[1]


def test_generation_streams_what_the_whole_model_predicts(trained):
    model = load_checkpoint(trained[1])
    stream = sampling.stream_bytes(model, b"", 10_000, seed=0, temperature=0.0)
    drawn = list(itertools.islice(stream, 70))  # more than two chunks; nothing waits for the other 9930
    ids = jnp.array([[ord("\n"), *drawn]], jnp.int32)
    logits = jax.jit(lambda model, ids: model(ids)[0])(model, ids)
    assert np.argmax(logits[0, :-1], axis=-1).tolist() == drawn


def test_text_at_the_end_is_that_of_the_stream(trained):
    """And ends with the same byte, where one ends it."""
    drawing = ("--prompt", "9", "--tokens", 30, "--temperature", 3, "--min-p", 0.05)
    streamed, whole = (run("generate", trained[1], *drawing, how) for how in ("--stream", "--no-stream"))
    assert streamed == whole
    assert streamed != run("generate", trained[1], *drawing[:-2])
    model = load_checkpoint(trained[1])
    drawn = list(sampling.stream_bytes(model, b"9", 30, seed=0))
    ending = models.with_config(model, eos_token_id=drawn[4])
    for draw in (sampling.stream_bytes, sampling.draw_bytes):
        assert list(draw(ending, b"9", 30, seed=0)) == drawn[: drawn.index(drawn[4]) + 1]


def test_several_samples(trained):
    _, out = run("generate", trained[1], "--prompt", "9", "--tokens", 10, "--samples", 2)
    texts = [run("generate", trained[1], "--prompt", "9", "--tokens", 10, "--seed", seed)[1] for seed in (0, 1)]
    assert out == f"{generate.SEPARATOR}\n".join(texts)


def test_demo_goes_the_whole_way(folder, monkeypatch):
    monkeypatch.setattr(defaults, "MODEL", TINY)
    monkeypatch.setattr(defaults, "BATCH_SIZE", 4)
    monkeypatch.setattr(defaults, "SEQUENCE_LENGTH", 64)
    code, out = run("demo", "--steps", 3, "--out", folder / "demo", "--data", folder / "text.txt")
    assert code == 0
    assert sorted(os.listdir(folder / "demo")) == [CONFIG, "loss_curve.png", WEIGHTS]
    assert "complex_ema" in out
    assert "beat the model; it has read 768 bytes" in out  # honest: three steps teach nothing
    held_out = data.load_corpus(folder / "text.txt", 64).held_out
    for name, bits in baselines(held_out).items():
        assert re.search(rf"^  {name} +{bits:.3f}$", out, re.MULTILINE)
    assert load_checkpoint(folder / "demo").config == TINY


def test_time_budget_ends_the_schedule(folder, monkeypatch):
    """The clock, not the number of steps, drives the rate: a fake clock makes each step take 10 s."""
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(loop, "make_step", lambda *_: FakeStep())
    monkeypatch.setattr(loop.Evaluator, "windows", lambda *_: 1.0)
    corpus = data.load_corpus(folder / "text.txt", 64)
    options = loop.Options(batch_size=4, sequence_length=64, learning_rate=1.0, steps=None, seconds=60.0, evaluations=3)
    records = list(loop.train(defaults.initial_model(TINY, 0), corpus, options))
    assert [record.step for record in records] == list(range(7))
    assert records[-1].fraction == 1.0
    assert [record.step for record in records if record.held_out is not None] == [0, 2, 4, 6]
    assert records[3].bytes_seen == 3 * 4 * 64
    assert loop.learning_rate(1.0, 0.0) == 0.0
    assert loop.learning_rate(1.0, 1.0) == pytest.approx(loop.FLOOR)


class FakeStep:
    """Stands in for the compiled step."""

    lower = compile = lambda self, *_: self
    __call__ = staticmethod(lambda state, *_: (state, types.SimpleNamespace(loss=np.float32(1))))


def test_interrupted_run_says_what_was_saved(folder, monkeypatch, capsys):
    model = defaults.initial_model(TINY, 0)

    def interrupted(*_):
        yield loop.Progress(0, 0.0, 0.0, 0, None, 8.0, model, 0.0)
        yield loop.Progress(5, 0.5, 1.0, 100, 7.0, 7.0, model, 0.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupted)
    monkeypatch.setattr(defaults, "MODEL", TINY)
    assert main(["demo", "--out", str(folder / "stopped"), "--data", str(folder / "text.txt")]) == 130
    error = capsys.readouterr().err
    assert "interrupted; the checkpoint of step 5 is in" in error
    assert "Traceback" not in error
    assert load_checkpoint(folder / "stopped").config == TINY


def test_default_corpus_is_deterministic_and_split_by_document():
    text = python_text.python_text()
    assert text == python_text.python_text()
    assert 1_000_000 < len(text) <= python_text.MAX_BYTES
    corpus = data.load_corpus(None, 256)
    assert len(corpus.held_out) % 256 == 1
    assert np.array_equal(np.concatenate([corpus.train, corpus.held_out]), np.frombuffer(text, np.uint8))


@pytest.fixture(scope="module")
def bad(folder, trained):
    """Files that are wrong in one way each."""
    (folder / "short.txt").write_bytes(b"x" * 100)
    (folder / "broken.gz").write_bytes(gzip.compress(TEXT)[:-9])
    (folder / "fake.gz").write_bytes(b"plain")
    (folder / "key.yaml").write_text("megalodon: {widht: 3}")
    (folder / "empty").mkdir()
    words = MegalodonConfig(**json.loads(TINY.to_json()) | {"vocab_size": 300})
    save_checkpoint(MegalodonForCausalLM(words, key=jax.random.key(0)), folder / "words")
    return folder


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("train --config {}/tiny.yaml run_dir={}/new data.path={}/nowhere", "nowhere cannot be read (No such file"),
        ("train --config {}/tiny.yaml run_dir={}/new data.path={}/empty", "empty is a folder; give one file"),
        ("train --config {}/tiny.yaml run_dir={}/new data.path={}/short.txt", "100 tokens split into 90, 5 and 5"),
        ("train --config {}/tiny.yaml run_dir={}/new data.path={}/broken.gz", "ends in .gz but does not decompress"),
        ("train --config {}/tiny.yaml run_dir={}/new data.path={}/fake.gz", "(5 bytes) ends in .gz but does not"),
        (
            "train --config {}/tiny.yaml run_dir={}/new data.split=literature",
            "needs 100,000,000 tokens, the file holds",
        ),
        ("train --config {}/tiny.yaml run_dir={}/new steps=-1", "steps must be an integer at least 1, got -1"),
        ("train --config {}/tiny.yaml run_dir={}/new --resume {}/empty", "empty has no checkpoint; give the folder of"),
        ("train --config {}/key.yaml run_dir={}/new", "unknown key megalodon.widht; the keys are"),
        ("train --config {}/nowhere.yaml", "nowhere.yaml cannot be read (No such file or directory); give a YAML file"),
        ("train --config {}/tiny.yaml", "run holds a run already; go on with it (--resume auto), replace it"),
        ("train --config {}/tiny.yaml --resume auto seed=1", "is of a run with other settings of seed; go on with the"),
        ("train --config {}/tiny.yaml run_dir={}/text.txt", "text.txt cannot be made a folder (File exists); choose"),
        ("train --config {}/tiny.yaml run_dir={}/text.txt/new", "cannot be made a folder (Not a directory); choose"),
        ("train --config {}/broken.gz", "broken.gz is no text: 'utf-8' codec can't decode"),
        ("plot {}/run {}/empty --out {}/new.png", "empty has no metrics.jsonl; give folders that train wrote"),
        ("demo --out {}/new --data {}/short.txt", "short.txt holds 100 bytes, at least 2048 are needed"),
        ("demo --out {}/new --data {}/nowhere", "nowhere cannot be read"),
        ("generate {}/nowhere", "nowhere is not a folder"),
        ("generate {}/empty", "empty has no model.safetensors"),
        ("generate {}/words", "has 300 tokens and 300 outputs; generate reads byte models"),
        ("generate {}/run/final --temperature -1", "temperature must be >= 0"),
        ("generate {}/run/final --top-p 2", "top_p must be in (0, 1]"),
        ("generate {}/run/final --top-k -1", "top_k must be >= 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(bad, capsys, arguments, expected):
    assert main(arguments.replace("{}", str(bad)).split()) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert expected.replace("{}", str(bad)) in error
    assert not (bad / "new").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "fly",
        "train",
        "plot x",
        "demo --minutes 0",
        "demo --seed -1",
    ],
)
def test_arguments_that_argparse_refuses(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments.split())
    assert exit_.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("module", ["rich", "matplotlib", "yaml", "orbax", "tensorboardX"])
def test_training_without_the_extra(monkeypatch, capsys, module):
    monkeypatch.setitem(sys.modules, module, None)
    for command in (["demo"], ["train", "--config", "test"], ["plot", "x", "--out", "y.png"]):
        assert main(command) == 2
        assert 'pip install "megalodon-pallas[train]"' in capsys.readouterr().err


def test_doctor_needs_only_the_base_dependencies(tmp_path):
    for module in ("rich", "matplotlib", "torch", "yaml", "orbax", "tensorboardX"):
        (tmp_path / f"{module}.py").write_text("raise ImportError('not a base dependency')")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    environment = os.environ | {"PYTHONPATH": path, "PALLAS_KERNELS_STRICT": "0"}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "megalodon_jax", "doctor"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    # What the CUDA plugin (extra `inspect`) itself writes where there is no driver.
    noise = ("absl::InitializeLog()", "Could not find cuda drivers")
    lines = [line for line in result.stderr.splitlines() if not any(part in line for part in noise)]
    assert (result.returncode, lines) == (0, [])
    for expected in ("equinox", "cpu:0", "PALLAS_KERNELS_STRICT  0", *OPS):
        assert expected in result.stdout
    assert result.stdout.count("chosen") == len(OPS)


@pytest.mark.parametrize("error", [RuntimeError("the plugin is too old"), AssertionError()])
def test_doctor_without_devices(error, monkeypatch, capsys):
    def fails(*_):
        raise error

    monkeypatch.setattr(jax, "devices", fails)
    monkeypatch.setattr(jax, "default_backend", fails)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert f"none: {error or 'none of the platforms'}" in said
    assert "JAX_PLATFORMS=cuda is set" in said
    assert said.endswith("ops, at a small shape\n  unknown: no devices\n")


def test_an_implementation_that_cannot_run_is_one_line(folder, tmp_path, capsys):
    with use_implementation(complex_ema="triton"):
        code = main(["train", "--config", str(folder / "tiny.yaml"), f"run_dir={tmp_path / 'run'}", "steps=1"])
    assert code == 2
    assert "implementation 'triton' is not available" in capsys.readouterr().err


def test_a_run_that_diverges_never_saves_what_diverged(folder, tmp_path, capsys):
    run_folder = tmp_path / "run"
    changes = ("optimizer.learning_rate=1e30", "optimizer.warmup_steps=0", "optimizer.most_bad_steps=4", "log.every=2")
    assert main(["train", "--config", str(folder / "tiny.yaml"), f"run_dir={run_folder}", *changes]) == 2
    error = capsys.readouterr().err
    assert "use a smaller optimizer.learning_rate than 1e+30" in error
    assert error.count("\n") == 1
    assert not (run_folder / "final").exists()
    records = read_metrics(run_folder / "metrics.jsonl")
    assert records[-1]["train_loss"] is None
    assert records[-1]["skipped"] == records[-1]["bad_in_a_row"] >= 4
    with training.Checkpoints(run_folder / "checkpoints", None) as checkpoints:
        assert checkpoints.steps() == []


def test_a_demo_that_diverges_never_saves_what_diverged(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(defaults, "MODEL", TINY)
    monkeypatch.setattr(defaults, "BATCH_SIZE", 4)
    monkeypatch.setattr(defaults, "SEQUENCE_LENGTH", 64)
    monkeypatch.setattr(defaults, "LEARNING_RATE", 1e30)
    out = tmp_path / "demo"
    assert main(["demo", "--data", str(folder / "text.txt"), "--out", str(out), "--steps", "2"]) == 2
    assert "smaller learning rate" in capsys.readouterr().err
    if (out / WEIGHTS).exists():
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(load_checkpoint(out)))


@pytest.mark.parametrize("out", ["new", "new/curves.png"])
def test_a_picture_that_cannot_be_written(out, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["plot", str(tmp_path), "--out", str(tmp_path / out)])
    assert "argument --out: expected a file" in capsys.readouterr().err
