"""`python -m megalodon_jax convert`: from any format to any, bit for bit, verified; what does not fit is named."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from megalodon_jax import MegalodonForCausalLM
from megalodon_jax.checkpoint import load_checkpoint, save_checkpoint
from megalodon_jax.cli import verify
from megalodon_jax.config import MegalodonConfig
from megalodon_jax.convert import (
    checkpoints,
    convert_jax_to_torch,
    load_from_pretrained,
    load_original_checkpoint,
    read_config,
    save_original_checkpoint,
)
from megalodon_jax.parameters import map_parameters, named_parameters
from tests import models
from tests.conversion import ORIGINAL, convert

MODELS = {"hf": models.VARIANTS["default"], "hf, everything on": models.VARIANTS["everything on"], "original": ORIGINAL}


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back_is_bit_exact(name, here, capsys):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.set_num_threads(1)
    model, other = models.build(**MODELS[name]), name.partition(",")[0]
    save_checkpoint(model, "a")
    assert convert("a", "b", "--to", other, "--verify") == 0
    assert convert("b", "c", "--allow-pickle", "--verify") == 0
    said = capsys.readouterr()
    assert said.out.count("float64 PyTorch oracle differ by") == 2
    assert said.out.count("(relative RMS, 56 tokens, chunks of 8)") == 2
    assert said.out.startswith(f"b ({other}): ")
    assert f"{model.config.parameter_count_breakdown()['total']:,} parameters, float32" in said.out
    assert said.err == ""
    models.assert_same(load_checkpoint("c"), model)
    assert Path("a/model.safetensors").read_bytes() == Path("c/model.safetensors").read_bytes()
    assert sorted(os.listdir()) == ["a", "b", "c"]


@pytest.mark.parametrize("dtype", ["bfloat16", None])
def test_dtypes(dtype, here, capsys):
    """The dtype asked for, or that of the config; the loaders of the library read what the command writes."""
    model = models.build(num_layers=1, param_dtype="bfloat16")
    save_checkpoint(models.build(num_layers=1) if dtype else model, "a")
    assert convert("a", "b", "--to", "hf", *(["--dtype", dtype] if dtype else [])) == 0
    assert json.loads(Path("b/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_file("b/model.safetensors")["lm_head.weight"].dtype == "bfloat16"
    assert "bfloat16 (" in capsys.readouterr().out
    config = read_config("b/config.json")
    assert config == dataclasses.replace(model.config, share_emb=None)
    loaded = load_from_pretrained("b", config)
    expected = models.build(num_layers=1) if dtype else model
    cast = map_parameters(lambda name, a: a.astype(named_parameters(loaded)[name].dtype), expected)
    models.assert_same(loaded, cast)


def test_original_checkpoints_from_python(here):
    pytest.importorskip("torch", reason="torch is not installed")
    model = models.build(**ORIGINAL)
    save_original_checkpoint(model, "a")
    loaded = load_original_checkpoint("a", read_config("a/config.json"), allow_pickle_checkpoint=True)
    models.assert_same(loaded, model)
    with pytest.raises(FileExistsError, match="a is there already"):
        save_original_checkpoint(model, "a")
    with pytest.raises(ValueError, match="no models of variant='hf'"):
        save_original_checkpoint(models.build(), "b")
    with pytest.raises(ValueError, match="float32 or bfloat16, got float64"):
        save_original_checkpoint(model, "b", dtype="float64")
    assert os.listdir() == ["a"]


def test_what_a_format_does_not_have(here, capsys):
    save_checkpoint(models.build(**ORIGINAL), "a")
    save_checkpoint(models.build(num_layers=1, share_emb=False), "b")
    save_checkpoint(models.build(), "h")
    for arguments, message in (
        (("a", "x", "--to", "hf"), "megalodon-hf has no models of variant='original'"),
        (("b", "x", "--to", "hf"), "megalodon-hf ties a head"),
        (("nothing", "x"), "there is no file config.json"),
        (("nothing/model.safetensors", "x", "--config", "a/config.json"), "Checkpoint not found: nothing"),
        (("a", "b"), "b is there already; give a new folder"),
        (("h", "x", "--config", "a/config.json"), "variant is original in the config and hf in the weights"),
    ):
        assert convert(*arguments) == 2
        assert message in capsys.readouterr().err
    assert sorted(os.listdir()) == ["a", "b", "h"]


def test_the_format_is_that_of_the_names_in_the_files(here, capsys):
    """Not of the file's name, nor of what else lies beside it."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    model, release = models.build(num_layers=1), models.build(num_layers=1, variant="original")
    save_checkpoint(model, "a")
    torch.save(convert_jax_to_torch(model), "m.pth")
    assert convert("m.pth", "b", "--allow-pickle", "--config", "a/config.json") == 0
    Path("a/consolidated.00.pth").write_bytes(b"stray")
    assert convert("a", "c") == 0
    save_original_checkpoint(release, "r")
    Path("r/consolidated.pth").rename("r/model.pt")
    assert convert("r/model.pt", "d", "--allow-pickle") == 0
    for out, expected in (("b", model), ("c", model), ("d", release)):
        models.assert_same(load_checkpoint(out), expected)
    assert convert("r/model.pt", "e", "--allow-pickle", "--config", "a/config.json") == 2
    assert "a checkpoint of the CUDA release needs variant='original', got 'hf'" in capsys.readouterr().err


@pytest.mark.parametrize(("chunk", "tokens"), [(8, 56), (512, 560), (2048, 48)])
def test_verified_tokens_reach_into_the_second_chunk(chunk, tokens):
    """Unless it is far away."""
    assert verify.length(models.config(chunk_size=chunk)) == tokens


def test_weights_that_are_no_numbers_leave_nothing_behind(here, capsys):
    """Given, or made by a cast; folders on the way to OUT are gone too."""
    save_checkpoint(models.build(num_layers=1), "a")
    whole = load_file("a/model.safetensors")
    for bad, message in ((np.nan, "1 values that are NaN or infinite"), (3.4e38, "1 values that bfloat16 cannot hold")):
        tensors = {name: value.copy() for name, value in whole.items()}
        tensors["model.layers.0.attn.wz.bias"][3] = bad
        save_file(tensors, "a/model.safetensors")
        assert convert("a", "b/c/d", "--to", "hf", "--dtype", "bfloat16") == 2
        assert f"model.layers.0.attn.wz.bias has {message}" in capsys.readouterr().err
        assert os.listdir() == ["a"]


def test_an_untied_head_is_verified_as_one(here):
    pytest.importorskip("torch", reason="torch is not installed")
    save_checkpoint(models.build(num_layers=1, share_emb=False), "a")
    assert convert("a", "b", "--verify") == 0


@pytest.mark.thorough
@pytest.mark.parametrize("changes", [{"norm_affine": False}, {"share_emb": True, "scale_emb": True}])
def test_original_models_of_every_kind(changes, here):
    pytest.importorskip("torch", reason="torch is not installed")
    model = models.build(**{**ORIGINAL, **changes})
    save_checkpoint(model, "a")
    assert convert("a", "b", "--to", "original", "--dtype", "bfloat16", "--verify") == 0
    assert convert("b", "c", "--allow-pickle", "--verify") == 0
    assert load_checkpoint("c").config.param_dtype == "bfloat16"


def test_what_cannot_be_verified_or_read(here, capsys, monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    save_checkpoint(models.build(num_layers=0), "a")
    assert convert("a", "b", "--verify") == 2
    assert "a model without layers cannot be verified" in capsys.readouterr().err
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    assert convert("a", "b", "--allow-pickle") == 2
    assert "install torch 2.10 or later" in capsys.readouterr().err
    assert os.listdir() == ["a"]


def test_shards_when_it_is_large(here, monkeypatch):
    model = models.build(num_layers=1)
    save_checkpoint(model, "a")
    monkeypatch.setattr(checkpoints, "_HF_SHARD_BYTES", 9000)
    assert convert("a", "b", "--to", "hf") == 0
    assert len(os.listdir("b")) > 4
    assert convert("b", "c") == 0
    models.assert_same(load_checkpoint("c"), model)


def test_a_wrong_conversion_does_not_pass_as_verified(here, monkeypatch, capsys):
    """wv and wr, which have the same shape, in each other's place."""
    pytest.importorskip("torch", reason="torch is not installed")
    model = models.build(num_layers=1)
    save_checkpoint(model, "a")
    tensors = load_file("a/model.safetensors")
    attention = "model.layers.0.attn."
    for part in ("weight", "bias"):
        wv, wr = f"{attention}wv.{part}", f"{attention}wr.{part}"
        tensors[wv], tensors[wr] = tensors[wr], tensors[wv]
    os.mkdir("swapped")
    save_file(tensors, "swapped/model.safetensors")
    parameters = checkpoints.open_parameters("a", model.config)
    assert verify.logit_error(parameters, model.config, Path("a")) < 1e-5
    assert verify.logit_error(parameters, model.config, Path("swapped")) > 100 * verify.BOUND
    monkeypatch.setattr(verify, "BOUND", 0.0)
    assert convert("a", "b", "--verify") == 2
    assert "more than 0e+00; do not use b" in capsys.readouterr().err


MEASURED = """
import sys, tracemalloc
from megalodon_jax.cli.main import main

tracemalloc.start()
assert main(["convert", *sys.argv[1:]]) == 0
print(tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("arguments", "most"),  # one tensor and a mask; where it is cast, also what it is cast to
    [(("a", "x", "--to", "hf"), 1.5), (("b", "x"), 1.5), (("a", "x", "--dtype", "bfloat16"), 2.0)],
)
def test_conversion_holds_one_tensor(arguments, most, here):
    """In a process of its own: what checks shapes in tests keeps arrays alive."""
    config = MegalodonConfig(
        vocab_size=8192, model_dim=256, num_layers=12, ffn_hidden_dim=1024, z_dim=64, value_dim=512, norm_num_groups=4
    )
    save_checkpoint(MegalodonForCausalLM(config, key=jax.random.key(0)), "a")
    assert convert("a", "b", "--to", "hf") == 0
    largest, everything = 8192 * 256 * 4, Path("a/model.safetensors").stat().st_size
    assert everything > 6 * largest
    measured = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        capture_output=True, text=True, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    imported = 6e6  # modules that are imported on the way
    assert int(measured.stdout.split()[-1]) < most * largest + imported
