"""Configs of checkpoints that `python -m megalodon_jax convert` reads: in every format, and what is wrong in them."""

import json
import os
from pathlib import Path

import pytest

from megalodon_jax.checkpoint import load_checkpoint, save_checkpoint
from megalodon_jax.convert import (
    read_config,
    save_original_checkpoint,
)
from tests import models
from tests.conversion import ORIGINAL, convert


def wrong(field, value, model, here) -> str:
    """What is said when a field of the config beside the weights is another."""
    save_checkpoint(model, "a")
    fields = json.loads(Path("a/config.json").read_text())
    Path("other.json").write_text(json.dumps(fields | {field: value}))
    assert convert("a", "b", "--config", "other.json") == 2
    assert sorted(os.listdir()) == ["a", "other.json"]
    return f"{field} is {value} in the config and {fields[field]} in the weights"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 65), ("model_dim", 36), ("num_layers", 1), ("num_layers", 3), ("z_dim", 32), ("value_dim", 50),
        ("ffn_hidden_dim", 41), ("cema_ndim", 5), ("swiglu", False), ("norm_affine", False), ("output_size", 51),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_with_both_values(field, value, here, capsys):
    expected = wrong(field, value, models.build(**models.VARIANTS["everything on"]), here)
    if isinstance(value, bool):
        expected = f"Checkpoint includes {'SwiGLU' if field == 'swiglu' else 'affine norm'} weights"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(("field", "value"), [("num_heads", 4), ("norm_num_groups", 8), ("rescale_nffn", False)])
def test_wrong_fields_that_checkpoints_of_the_release_tell(field, value, here, capsys):
    pytest.importorskip("torch", reason="torch is not installed")
    save_original_checkpoint(models.build(**ORIGINAL), "a")
    config = json.loads(Path("a/config.json").read_text())
    given = config["model"][field]
    config["model"][field] = value
    Path("a/config.json").write_text(json.dumps(config))
    assert convert("a", "b", "--allow-pickle") == 2
    assert f"{field} is {value} in the config and {given} in the weights" in capsys.readouterr().err
    assert os.listdir() == ["a"]


HF = {
    "architectures": ["MegalodonForCausalLM"], "model_type": "megalodon", "transformers_version": "4.57.6",
    "torch_dtype": "bfloat16", "num_attention_heads": 2, "use_cache": True, "is_decoder": True, "efficient_attn": None,
    "share_emb": False, "gradient_checkpointing": True, "init_mode": "he", "max_cache_len": -1, **models.SIZES,
}  # fmt: skip


def test_configs_of_the_other_formats(here):
    Path("c.json").write_text(json.dumps(HF))
    config = read_config("c.json")
    assert config == models.config(init_mode="he", use_checkpoint=True, param_dtype="bfloat16")
    assert config.tied
    Path("c.json").write_text(json.dumps(HF | {"torch_dtype": "torch.float16"}))
    assert read_config("c.json", "float32").param_dtype == "float32"
    release = {"init_mode": "he", "efficient_attn": "fused", "layerwise_ckpt": True, **models.SIZES}
    Path("c.json").write_text(json.dumps({"model": release, "tokenizer": {}}))
    config = read_config("c.json")
    expected = {"init_mode": "kaiming", "attention_dropout_mode": "dropkey", "use_checkpoint": True}
    assert config == models.config(variant="original", share_emb=False, pad_token_id=None, **expected)
    Path("consolidate_config.json").write_text('{"model_parallel_size": 1, "dtype": "bf16"}')
    assert read_config("c.json").param_dtype == "bfloat16"
    Path("consolidate_config.json").write_text('{"model_parallel_size": 1, "dtype": "fp8"}')
    with pytest.raises(ValueError, match="'fp8', expected one of fp32, bf16, fp16"):
        read_config("c.json")
    Path("consolidate_config.json").unlink()
    Path("c.json").write_text(config.to_json())
    assert read_config("c.json") == config
    Path("c.json").write_text(json.dumps({"model": {"vocab_size": 7}}))
    left = read_config("c.json")  # what the release leaves out
    assert (left.num_layers, left.ffn_hidden_dim, left.init_mode, left.tied) == (8, 2048, "kaiming", False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no file c.json; give one with the config"),
        ("", "not valid JSON|Expecting value"),
        ("[]", "must be a JSON object"),
        ('{"vocabsize": 3}', "unknown config key vocabsize"),
        ('{"model_type": "llama"}', "model_type is 'llama', expected 'megalodon'"),
        ('{"model_type": "megalodon", "z_dim": "x"}', "z_dim must be a positive int, got 'x'"),
        ('{"model_type": "megalodon", "torch_dtype": "float16"}', "float16, in which the EMA.*choose another dtype"),
        ('{"z_dim": 4, "z_dim": 5}', "z_dim is in it twice"),
        ("[" * 100_000, "recursion"),
        ('{"model": {"vocab_size": 7, "efficient_attn": 5}}', "efficient_attn must be null, 'swift' or 'fused', got 5"),
        ('{"model": {"vocab_size": 7, "zdim": 3}}', "unknown field zdim of the model"),
        ('{"model": {}}', "vocab_size is -1, left to the tokenizer"),
        ('{"model": {"vocab_size": 7, "share_emb": 3}}', "share_emb must be bool"),
    ],
)
def test_bad_configs(text, message, here, unhooked):
    if text is not None:
        Path("c.json").write_text(text)
    with pytest.raises(FileNotFoundError if text is None else ValueError, match=message):
        read_config("c.json")


def test_the_config_of_an_interrupted_save(here, monkeypatch):
    """New weights, whose config has not been moved to its place: convert reads what load_checkpoint does."""
    save_checkpoint(models.build(num_layers=1), "a")
    new, replace = models.build(num_layers=1, num_heads=1), os.replace

    def crash(source, target):
        if target.name == "config.json":
            raise OSError("power cut")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(OSError, match="power cut"):
            save_checkpoint(new, "a")
    assert load_checkpoint("a").config.num_heads == 1
    for given, out in (("a", "b"), ("a/model.safetensors", "c")):
        assert convert(given, out) == 0
        assert load_checkpoint(out).config == new.config


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_heads", 1), ("chunk_size", 4), ("norm_num_groups", 8), ("rope_base", 500.0), ("norm_eps", 0.1),
     ("rescale_nffn", True), ("scale_emb", True), ("pad_token_id", 3)],
)  # fmt: skip
def test_our_files_carry_their_config(field, value, here, capsys):
    """What leaves no trace in the shapes: given by --config, or in config.json beside them."""
    model = models.build(num_layers=1)
    save_checkpoint(model, "a")
    fields = json.loads(Path("a/config.json").read_text())
    Path("other.json").write_text(json.dumps(fields | {field: value}))
    assert convert("a", "b", "--config", "other.json") == 2
    before = fields[field] if field != "rope_base" else model.config.effective_rope_base
    assert f"{field} is {value} in the config and {before} in the weights" in capsys.readouterr().err
    Path("other.json").replace("a/config.json")
    assert convert("a", "b") == 2
    assert f"{field} is {value} in the config" in capsys.readouterr().err
    assert os.listdir() == ["a"]


def test_a_config_that_says_the_same_in_other_words(here):
    """That of megalodon-hf has no compute_dtype; options of training are nobody's weights."""
    model = models.build(num_layers=1, compute_dtype="bfloat16", param_dtype="bfloat16")
    save_checkpoint(model, "a")
    assert convert("a", "b", "--to", "hf") == 0
    fields = json.loads(Path("b/config.json").read_text())
    Path("hf.json").write_text(json.dumps(fields | {"dropout": 0.25}))
    assert convert("a", "c", "--config", "hf.json") == 0
    assert load_checkpoint("c").config.dropout == 0.25


def test_fields_that_a_format_has_no_place_for(here, capsys):
    save_checkpoint(models.build(num_layers=1, compute_dtype="bfloat16", scan_layers=True), "a")
    assert convert("a", "b", "--to", "hf") == 0
    said = "not kept, config.json of hf has no place for it: compute_dtype bfloat16, scan_layers True\n"
    assert said in capsys.readouterr().out
    save_checkpoint(models.build(num_layers=1), "c")
    assert convert("c", "d", "--to", "hf") == convert("c", "e") == 0
    assert "not kept" not in capsys.readouterr().out
    pytest.importorskip("torch", reason="torch is not installed")
    save_checkpoint(models.build(num_layers=1, variant="original", max_cache_len=16, eos_token_id=7), "f")
    assert convert("f", "g", "--to", "original") == 0
    assert "of original has no place for it: max_cache_len 16, eos_token_id 7\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "dtype of c/consolidate_config.json is None, expected one of fp32, bf16, fp16; correct it, or choose"),
        ('{"dtype": ["fp32"]}', r"dtype of c/consolidate_config.json is \['fp32'\], expected"),
        ('{"dtype": "fp32", "dtype": "bf16"}', "c/consolidate_config.json: dtype is in it twice"),
        ("[]", "c/consolidate_config.json must be a JSON object, got list"),
        ("x", "c/consolidate_config.json: Expecting value"),
        ("[" * 100_000, "c/consolidate_config.json: .*recursion"),
    ],
)
def test_bad_consolidations(text, message, here, unhooked):
    os.mkdir("c")
    Path("c/config.json").write_text(json.dumps({"model": {"vocab_size": 7}}))
    Path("c/consolidate_config.json").write_text(text)
    with pytest.raises(ValueError, match=f"^{message}"):
        read_config("c/config.json")
    assert read_config("c/config.json", "bfloat16").param_dtype == "bfloat16"
