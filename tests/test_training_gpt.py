"""Runs of GPT: from GPT-2's weights, to a checkpoint that `generate` reads; and where there is no bfloat16."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax.checkpoint import load_checkpoint, save_checkpoint
from megalodon_jax.cli.main import main
from megalodon_jax.training import probe
from megalodon_jax.training.config import TrainingConfig
from megalodon_jax.training.config_files import load
from megalodon_jax.training.loop import open_run, train
from megalodon_jax.training.metrics import read_metrics
from tests import baselines, models
from tests.bigram import train_bigrams
from tests.test_gpt2 import FIELDS, save, tensors

TEXT = b"".join(b"%d green bottles hanging on the wall\n" % (count % 10) for count in range(100))
SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 24, "block_size": 24, "vocab_size": 256}


def config(folder: Path, **changes) -> TrainingConfig:
    (folder / "tokens").write_bytes(np.frombuffer(TEXT, np.uint8).astype("<u2").tobytes())
    values = {
        "run_dir": str(folder / "run"), "steps": 2, "batch_size": 2, "model": "gpt",
        "data": {"path": str(folder / "tokens"), "tokens": "uint16", "sequence_length": 16},
        "optimizer": {"learning_rate": 1e-3}, "evaluation": {"every": 0, "windows": 3}, "log": {"every": 1},
    }  # fmt: skip
    return TrainingConfig.from_dict(values | changes)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> str:
    """Random weights, in a folder such as GPT-2 is published in."""
    weights = tensors(prefix="transformer.")
    weights["transformer.wte.weight"] = np.random.default_rng(1).normal(size=(128, 24)).astype(np.float32)
    return str(save(tmp_path_factory.mktemp("gpt2"), weights, FIELDS | {"vocab_size": 128}))


@pytest.mark.parametrize("kind", ["gpt", "gpt exact", "llama", "llama untied"])
def test_checkpoints_of_baselines(kind, tmp_path):
    model = baselines.build(kind, compute_dtype=jnp.bfloat16)
    save_checkpoint(model, tmp_path)
    models.assert_same(load_checkpoint(tmp_path), model)
    assert load_checkpoint(tmp_path).config == model.config
    assert type(model.config).from_json(model.config.to_json()) == model.config


def test_a_checkpoint_of_no_model_here(tmp_path):
    model = baselines.build("gpt")
    save_checkpoint(model, tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"gpt"', '"mamba"'))
    with pytest.raises(ValueError, match="model must be one of megalodon, llama, gpt, got 'mamba'"):
        load_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="model must be 'llama' for a LlamaConfig, got 'gpt'"):
        type(baselines.config("llama")).from_json(text)


def test_a_run_begins_with_the_weights(gpt2, tmp_path):
    asked = config(tmp_path, init_from="gpt2", init_weights=gpt2, gpt={"dropout": 0.1, "block_size": 20})
    run, _ = open_run(asked)
    model = run.model(run.state)
    assert (model.config.block_size, model.config.dropout, model.config.n_embd) == (20, 0.1, 24)
    source = baselines.build("gpt")
    np.testing.assert_array_equal(model.model.layers[1].ffn.up.weight, source.model.layers[1].ffn.up.weight)
    np.testing.assert_array_equal(model.model.position_embed.weight, source.model.position_embed.weight[:20])
    assert run.config.gpt["n_layer"] == 2  # what the run's folder says, too
    assert "n_layer: 2" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.thorough
def test_gpt2_trains_and_goes_on(gpt2, tmp_path):
    asked = config(tmp_path, init_from="gpt2", init_weights=gpt2)
    train(asked)
    more = load(str(tmp_path / "run" / "config.yaml"), ["steps=3", "init_from=resume", "init_weights=null"])
    assert train(more).step == 3
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [record["evaluated_train_loss"] for record in records if "evaluated_train_loss" in record]
    assert len(losses) == 2  # at the end of each
    assert losses[1] < losses[0]
    assert load_checkpoint(tmp_path / "run" / "final").config.vocab_size == 128


@pytest.mark.thorough
def test_a_gpt_of_bytes_is_sampled_from(tmp_path, capsys):
    (tmp_path / "text").write_bytes(TEXT)
    train(config(tmp_path, gpt=SMALL, data={"path": str(tmp_path / "text"), "sequence_length": 16}))
    assert main(["generate", str(tmp_path / "run" / "final"), "--prompt", "9 green", "--tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("9 green")
    assert main(["generate", str(tmp_path / "run" / "final"), "--prompt", "9 green", "--tokens", "50"]) == 0
    assert len(capsys.readouterr().out.encode()) >= 57  # beyond block_size, as nanoGPT goes on


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": "gpt2"}, "init_weights must be a folder with GPT-2's weights where init_from is gpt2"),
        ({"init_weights": "x"}, "and null elsewhere; got x where it is scratch"),
        (
            {"init_from": "gpt2", "init_weights": "x", "model": "llama"},
            "model must be gpt and output_std null",
        ),
        ({"init_from": "gpt2", "init_weights": "nowhere"}, "Checkpoint not found: nowhere"),
        ({"init_from": "gpt2", "init_weights": True, "gpt": {"n_layer": 3}}, "gpt.n_layer is 3, and 2 in .*; leave it"),
        ({"init_from": "gpt2", "init_weights": True, "gpt": {"block_size": 25}}, "leave it out, or make it smaller"),
        ({"init_from": "gpt2", "init_weights": True, "gpt": {"layers": 3}}, "unknown key gpt.layers"),
        ({"init_from": "resume"}, "has no checkpoint"),
        ({"init_from": "gpt3"}, "init_from must be scratch or resume or gpt2, got 'gpt3'"),
    ],
)
def test_what_does_not_fit_is_one_line(changes, message, gpt2, tmp_path):
    changes = {name: gpt2 if value is True else value for name, value in changes.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_run(config(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_without_bfloat16(tmp_path, monkeypatch):
    train_bigrams(monkeypatch)
    asked = config(tmp_path, gpt=SMALL | {"compute_dtype": "bfloat16"})
    assert open_run(asked)[0].config.gpt["compute_dtype"] == "bfloat16"
    turing = SimpleNamespace(device_kind="Tesla T4", compute_capability="7.5")
    monkeypatch.setattr(probe, "_device", lambda: turing)
    with pytest.warns(UserWarning, match=r"Tesla T4 does not compute in bfloat16: gpt.compute_dtype is float32"):
        run, _ = open_run(asked, overwrite=True)
    assert run.config.gpt["compute_dtype"] == "float32"
    assert re.search("compute_dtype: float32", (tmp_path / "run" / "config.yaml").read_text())
    assert [probe.has_bfloat16(SimpleNamespace(compute_capability=it)) for it in ("7.0", "8.0", "12.0", "gfx90a")] == [
        False, True, True, True
    ]  # fmt: skip
    assert probe.has_bfloat16(jax.devices()[0])
