"""Native checkpoints: bit-exact round trip, strict loading, atomic saving."""

import json
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from megalodon_jax import MegalodonConfig, MegalodonForCausalLM
from megalodon_jax.checkpoint import CONFIG, WEIGHTS, load_checkpoint, save_checkpoint
from megalodon_jax.parameters import map_parameters, named_parameters

SIZES: dict[str, Any] = {
    "vocab_size": 40, "model_dim": 16, "num_layers": 2, "z_dim": 8, "value_dim": 16, "ffn_hidden_dim": 24,
    "cema_ndim": 2, "chunk_size": 8, "norm_num_groups": 4,
}  # fmt: skip


def make_model(seed: int = 0, **fields) -> MegalodonForCausalLM:
    return MegalodonForCausalLM(MegalodonConfig(**SIZES | fields), key=jax.random.key(seed))


def assert_same(model: MegalodonForCausalLM, other: MegalodonForCausalLM) -> None:
    assert model.config == other.config
    assert jax.tree.structure(model) == jax.tree.structure(other)
    for name, leaf in named_parameters(model).items():
        twin = named_parameters(other)[name]
        assert leaf.dtype == twin.dtype
        assert np.asarray(leaf).tobytes() == np.asarray(twin).tobytes(), name


@pytest.fixture
def saved(tmp_path):
    model = make_model()
    save_checkpoint(model, tmp_path / "ck")
    return model, tmp_path / "ck"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"param_dtype": jnp.bfloat16, "compute_dtype": jnp.bfloat16, "share_emb": False, "swiglu": True},
        {"norm_affine": False, "pad_token_id": None, "output_size": 7},
    ],
    ids=["float32", "bfloat16-untied-swiglu", "no-affine"],
)
def test_round_trip_is_bit_exact(tmp_path, fields):
    model = make_model(**fields)
    save_checkpoint(model, tmp_path / "a" / "b")
    assert sorted(os.listdir(tmp_path / "a" / "b")) == [CONFIG, WEIGHTS]
    assert_same(model, load_checkpoint(str(tmp_path / "a" / "b")))


def test_save_replaces_a_checkpoint_and_nothing_else(saved):
    _, folder = saved
    (folder / "notes.txt").write_text("mine")
    other = make_model(1, swiglu=True)
    save_checkpoint(other, folder)
    assert_same(other, load_checkpoint(folder))
    assert sorted(os.listdir(folder)) == [CONFIG, WEIGHTS, "notes.txt"]


@pytest.mark.parametrize("crash_at", [1, 2])
@pytest.mark.parametrize("unclean", [False, True], ids=["exception", "power-cut"])
def test_crash_at_either_replacement_leaves_one_whole_checkpoint(saved, monkeypatch, crash_at, unclean):
    old, folder = saved
    new = make_model(1, swiglu=True)
    calls, replace = [], os.replace

    def crash(source, target):
        calls.append(target)
        if len(calls) == crash_at:
            raise OSError("power cut")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        if unclean:  # nobody cleans up either
            patch.setattr("pathlib.Path.unlink", lambda self, missing_ok=False: None)
        with pytest.raises(OSError, match="power cut"):
            save_checkpoint(new, folder)
    assert_same(old if crash_at == 1 else new, load_checkpoint(folder))
    save_checkpoint(old, folder)
    assert_same(old, load_checkpoint(folder))
    assert sorted(os.listdir(folder)) == [CONFIG, WEIGHTS]


def test_crashes_of_two_saves_in_a_row(saved, monkeypatch):
    """The first leaves new weights whose config still waits; the second must not lose it."""
    _, folder = saved
    second, third, replace = make_model(1, swiglu=True), make_model(2, num_layers=1), os.replace

    def crash_on(name: str):
        def crash(source, target):
            if target.name == name:
                raise OSError("power cut")
            replace(source, target)

        return crash

    for model, name in ((second, CONFIG), (third, WEIGHTS)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", crash_on(name))
            with pytest.raises(OSError, match="power cut"):
                save_checkpoint(model, folder)
        assert_same(second, load_checkpoint(folder))


def full_disk(monkeypatch):
    """Weights do not fit on the disk; a config does."""
    fsync = os.fsync

    def full(descriptor):
        if os.fstat(descriptor).st_size > 5000:
            raise OSError("no space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)


def test_full_disk_leaves_the_old_checkpoint(saved, monkeypatch):
    old, folder = saved
    with monkeypatch.context() as patch:
        full_disk(patch)
        with pytest.raises(OSError, match="no space"):
            save_checkpoint(make_model(1), folder)
    assert sorted(os.listdir(folder)) == [CONFIG, WEIGHTS]
    assert_same(old, load_checkpoint(folder))


def test_a_model_that_does_not_fit_its_config_is_not_saved(tmp_path):
    model = map_parameters(lambda _, leaf: leaf.astype(jnp.bfloat16), make_model())
    with pytest.raises(ValueError, match=r"cannot save .*model\.embed\.weight is bfloat16\[40, 16\], expected float32"):
        save_checkpoint(model, tmp_path / "ck")
    assert not (tmp_path / "ck").exists()


def test_missing_folder_or_file(saved, tmp_path):
    _, folder = saved
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder"):
        load_checkpoint(tmp_path / "nowhere")
    (folder / CONFIG).rename(tmp_path / "config")
    with pytest.raises(FileNotFoundError, match=re.escape(f"{folder} has no config.json")):
        load_checkpoint(folder)
    (tmp_path / "config").rename(folder / CONFIG)
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"{folder} has no model.safetensors")):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "config.json: .*decode"),
        (b"[]", "must be a JSON object, got list"),
        (b'{"widht": 3}', "unknown config key widht"),
        (b'{"norm_eps": "small"}', "config.json: "),
        (b'{"num_layers": -1}', "num_layers must be a positive int, got -1"),
    ],
)
def test_bad_config(saved, text, message):
    _, folder = saved
    (folder / CONFIG).write_bytes(text)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_truncated_weights(saved, size):
    _, folder = saved
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:size])
    with pytest.raises(ValueError, match=rf"{WEIGHTS} \(\d+ bytes\) is not a whole safetensors file"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("model.embed.weight"), "model.embed.weight is missing"),
        (lambda t: t.update(extra=np.zeros(2, np.float32)), "extra is not a parameter of this config"),
        (
            lambda t: t.update({"model.norm.bias": np.zeros(15, np.float32)}),
            r"model.norm.bias is float32\[15\], expected float32\[16\]",
        ),
        (
            lambda t: t.update({"model.norm.bias": np.zeros(16, np.float64)}),
            r"model.norm.bias is float64\[16\], expected float32\[16\]",
        ),
        (lambda t: t.clear(), r"is missing; .* and \d+ more; use the config and the weights of one model"),
    ],
)
def test_tensors_that_do_not_fit(saved, edit, message):
    model, folder = saved
    tensors = {name: np.asarray(leaf) for name, leaf in named_parameters(model).items()}
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


def test_config_of_another_size(saved):
    _, folder = saved
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"num_layers": 3}))
    with pytest.raises(ValueError, match=r"model\.layers\.2\..* is missing"):
        load_checkpoint(folder)
