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
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax import MegalodonConfig, MegalodonForCausalLM
from megalodon_jax.checkpoint import CONFIG, WEIGHTS, load_checkpoint, save_checkpoint
from megalodon_jax.cli import data, defaults, loop, sampling
from megalodon_jax.cli.compressors import baselines, unigram_entropy
from megalodon_jax.cli.main import main
from pallas_kernels import use_implementation
from tests import models

TINY = MegalodonConfig(
    vocab_size=256, model_dim=32, num_layers=1, z_dim=16, value_dim=32, ffn_hidden_dim=32, cema_ndim=2, chunk_size=32,
    norm_num_groups=16, pad_token_id=None, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
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
    (folder / "tiny.json").write_text(TINY.to_json())
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """Stdout and folder of one short run."""
    code, out = run(
        "train", "--out", folder / "run", "--data", folder / "text.txt", "--config", folder / "tiny.json",
        "--steps", 60, "--batch-size", 4, "--sequence-length", 64, "--learning-rate", 0.01,
    )  # fmt: skip
    assert code == 0
    return out, folder / "run"


def test_train_learns_and_writes_its_files(trained):
    out, folder = trained
    assert sorted(os.listdir(folder)) == [CONFIG, "loss_curve.png", WEIGHTS]
    assert (folder / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    held_out = [float(bits) for bits in re.findall(r"^step.*held out +([\d.]+) ", out, re.MULTILINE)]
    assert len(held_out) == 11
    assert held_out[0] == pytest.approx(8, rel=0.1)
    assert held_out[-1] < unigram_entropy(np.frombuffer(TEXT, np.uint8)) < held_out[0]
    assert all(str(folder / name) in out for name in os.listdir(folder))


def test_saved_model_reaches_the_loss_that_was_printed(trained, folder):
    out, run_folder = trained
    corpus = data.load_corpus(folder / "text.txt", 64)
    windows = jnp.asarray(data.evaluation_windows(corpus.held_out, 64))
    nats = float(jax.jit(lambda model, ids: model.compute_loss(ids, ids))(load_checkpoint(run_folder), windows))
    printed = re.search(r"-> ([\d.]+) bits/byte after 60 steps", out)
    assert printed is not None
    assert nats / math.log(2) == pytest.approx(float(printed[1]), abs=1e-3)


@pytest.mark.thorough
def test_loss_of_the_default_model_at_step_0_is_that_of_guessing():
    model = defaults.initial_model(defaults.MODEL, seed=0)
    ids = next(data.training_batches(data.load_corpus(None, 128).train, 2, 128, seed=0))
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


def test_decoding_waits_for_whole_characters_and_never_fails():
    assert list(sampling.decoded(b"a\xc3\xa9\xff")) == ["a", "", "é", "�", ""]
    assert "".join(sampling.decoded(b"\xe2\x82")) == "�"


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
    monkeypatch.setattr(loop, "compile_step", lambda *_: FakeStep())
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
    """Stands in for `step.Compiled`."""

    parameters = state = None
    seconds = 0.0
    step = staticmethod(lambda *_: (None, None, np.float32(1)))
    losses = staticmethod(lambda _, ids: np.ones((ids.shape[0], ids.shape[1] - 1), np.float32))
    model = staticmethod(lambda _: None)


def test_interrupted_run_says_what_was_saved(folder, monkeypatch, capsys):
    model = defaults.initial_model(TINY, 0)

    def interrupted(*_):
        yield loop.Progress(0, 0.0, 0.0, 0, None, 8.0, model, 0.0)
        yield loop.Progress(5, 0.5, 1.0, 100, 7.0, 7.0, model, 0.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupted)
    assert main(["train", "--out", str(folder / "stopped"), "--config", str(folder / "tiny.json")]) == 130
    error = capsys.readouterr().err
    assert "interrupted; the checkpoint of step 5 is in" in error
    assert "Traceback" not in error
    assert load_checkpoint(folder / "stopped").config == TINY


def test_default_corpus_is_deterministic_and_split_by_document():
    text, _ = data.default_text()
    assert text == data.default_text()[0]
    assert 1_000_000 < len(text) <= data.MAX_DEFAULT_BYTES
    corpus = data.load_corpus(None, 256)
    windows = data.evaluation_windows(corpus.held_out, 256)
    assert windows.shape[1] == 256
    assert np.array_equal(np.concatenate([windows[0], windows[1:, 1:].ravel()]), corpus.held_out)
    assert np.array_equal(np.concatenate([corpus.train, corpus.held_out]), np.frombuffer(text, np.uint8))


def test_batches_repeat_per_seed():
    values = np.arange(200, dtype=np.uint8)
    batch = next(data.training_batches(values, 64, 199, seed=3))
    assert batch.dtype == np.int32
    assert set(batch[:, 0]) == {0, 1}  # the last window ends with the last byte
    assert np.array_equal(batch, next(data.training_batches(values, 64, 199, seed=3)))


def test_gzip_file_is_read(folder):
    (folder / "text.gz").write_bytes(gzip.compress(TEXT))
    plain, packed = (data.load_corpus(folder / name, 64) for name in ("text.txt", "text.gz"))
    assert np.array_equal(plain.train, packed.train)


@pytest.fixture(scope="module")
def bad(folder, trained):
    """Files that are wrong in one way each."""
    (folder / "short.txt").write_bytes(b"x" * 100)
    (folder / "broken.gz").write_bytes(gzip.compress(TEXT)[:-9])
    (folder / "fake.gz").write_bytes(b"plain")
    (folder / "key.json").write_text(json.dumps({"vocab_size": 256, "widht": 3}))
    (folder / "words.json").write_text("{}")
    (folder / "empty").mkdir()
    words = MegalodonConfig(**json.loads(TINY.to_json()) | {"vocab_size": 300})
    save_checkpoint(MegalodonForCausalLM(words, key=jax.random.key(0)), folder / "words")
    return folder


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("train --out {}/new --data {}/nowhere", "nowhere cannot be read (No such file or directory); give one file"),
        ("train --out {}/new --data {}/empty", "empty is a folder; give one file"),
        ("train --out {}/new --data {}/short.txt", "short.txt holds 100 bytes, at least 2048 are needed"),
        ("train --out {}/new --data {}/broken.gz", "ends in .gz but does not decompress"),
        ("train --out {}/new --data {}/fake.gz", "(5 bytes) ends in .gz but does not decompress"),
        ("train --out {}/new --config {}/key.json", "key.json: unknown config key widht; the keys are"),
        ("train --out {}/new --config {}/words.json", "vocab_size is 32000 and output_size -1; the tokens are bytes"),
        ("train --out {}/new --config {}/nowhere.json", "--config {}/nowhere.json: "),
        ("train --out {}/run", "run already holds a checkpoint; choose another folder or add --overwrite"),
        ("train --out {}/text.txt", "text.txt"),
        ("demo --out {}/new --data {}/nowhere", "nowhere cannot be read"),
        ("generate {}/nowhere", "nowhere is not a folder"),
        ("generate {}/empty", "empty has no model.safetensors"),
        ("generate {}/words", "has 300 tokens and 300 outputs; generate reads byte models"),
        ("generate {}/run --temperature -1", "temperature must be >= 0"),
        ("generate {}/run --top-p 2", "top_p must be in (0, 1]"),
        ("generate {}/run --top-k -1", "top_k must be >= 0"),
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
        "train --out x --steps 0",
        "train --out x --sequence-length 1",
        "demo --minutes 0",
        "demo --seed -1",
    ],
)
def test_arguments_that_argparse_refuses(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments.split())
    assert exit_.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("module", ["rich", "matplotlib"])
def test_training_without_the_extra(monkeypatch, capsys, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["demo"]) == 2
    assert 'pip install "megalodon-pallas[train]"' in capsys.readouterr().err


def test_doctor_needs_only_the_base_dependencies(tmp_path):
    for module in ("rich", "matplotlib", "torch"):
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
    for expected in (
        "equinox",
        "cpu:0",
        "PALLAS_KERNELS_STRICT  0",
        "complex_ema",
        "timestep_norm",
        "chunked_attention",
        "normalized_rotary",
        "fused_linear",
    ):
        assert expected in result.stdout
    assert result.stdout.count("chosen") == 5


def test_an_implementation_that_cannot_run_is_one_line(tmp_path, capsys):
    data = tmp_path / "text"
    data.write_bytes(b"to be or not to be, " * 1000)
    with use_implementation(complex_ema="triton"):
        code = main(["train", "--data", str(data), "--out", str(tmp_path / "run"), "--steps", "1"])
    assert code == 2
    assert "implementation 'triton' is not available" in capsys.readouterr().err


def test_a_run_that_diverges_never_saves_what_diverged(tmp_path, capsys):
    data, out = tmp_path / "text", tmp_path / "run"
    data.write_bytes(b"to be or not to be, " * 1000)
    size = ["--batch-size", "1", "--sequence-length", "32", "--steps", "2"]
    assert main(["train", "--data", str(data), "--out", str(out), *size, "--learning-rate", "1e30"]) == 2
    assert "smaller learning rate" in capsys.readouterr().err
    if (out / WEIGHTS).exists():
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(load_checkpoint(out)))
