"""Weights to PyTorch and back: bit-exact, strict, clear about what does not fit; sensitive parameters stay float32."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax import convert
from megalodon_jax.parameters import map_parameters, named_parameters
from megalodon_jax.precision import (
    audit_sensitive_param_dtypes,
    cast_weights,
    ensure_sensitive_param_dtype,
    is_sensitive,
)
from tests import models

torch = pytest.importorskip("torch", reason="torch is not installed")


@pytest.mark.parametrize("variant", models.VARIANTS)
def test_round_trip_is_bit_exact(variant, tmp_path):
    model = models.build(**models.VARIANTS[variant])
    path = tmp_path / "model.safetensors"
    convert.save_safetensors(model, path)
    models.assert_same(convert.load_from_pretrained(path, model.config, key=jax.random.key(5)), model)
    pickled = tmp_path / "model.pt"
    torch.save({"state_dict": convert.convert_jax_to_torch(model)}, pickled)
    with pytest.raises(ValueError, match="allow_pickle_checkpoint=True"):
        convert.load_from_pretrained(pickled, model.config)
    models.assert_same(convert.load_from_pretrained(pickled, model.config, allow_pickle_checkpoint=True), model)
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_bfloat16_both_ways(tmp_path):
    model = models.build(param_dtype=jnp.bfloat16, compute_dtype=jnp.bfloat16)
    path = tmp_path / "model.safetensors"
    convert.save_safetensors(model, path, dtype=torch.bfloat16)
    tensors = convert.convert_jax_to_torch(model, dtype=torch.bfloat16)
    for name, tensor in tensors.items():
        assert tensor.dtype == (torch.float32 if is_sensitive(name) else torch.bfloat16), name
    loaded = convert.load_from_pretrained(path, model.config, key=jax.random.key(0))
    models.assert_same(loaded, model)
    full = convert.load_from_pretrained(path, model.config, jnp.float32, key=jax.random.key(0))
    assert full.config.param_dtype == full.model.embed.weight.dtype == jnp.float32
    assert not audit_sensitive_param_dtypes(loaded)


def test_state_dict_has_the_documented_keys():
    state = convert.convert_jax_to_torch(models.build())
    assert len(state) == 58
    assert sum(v.numel() for k, v in state.items() if k != "lm_head.weight") == 21_616
    assert state["model.layers.1.attn.cema.alpha"].shape == (32, 4, 1)
    assert len(convert.convert_jax_to_torch(models.build(norm_affine=False))) == 46
    extra = convert.convert_jax_to_torch(models.build(), include_rope_inv_freq=True)
    assert set(extra) - set(state) == {f"model.layers.{i}.attn.inner.rope.inv_freq" for i in range(2)}
    assert convert.load_weights_from_torch(models.build(), extra) is not None


ROPE = "model.layers.0.attn.inner.rope.inv_freq"


def broken(change):
    state = convert.convert_jax_to_torch(models.build(), include_rope_inv_freq=True)
    change(state)
    return state


@pytest.mark.parametrize(
    ("kind", "message", "change"),
    [
        (KeyError, "wz.bias", lambda s: s.pop("model.layers.0.attn.wz.bias")),
        (ValueError, "Unknown keys", lambda s: s.update(extra=torch.ones(1))),
        (ValueError, "SwiGLU", lambda s: s.update({"model.layers.0.ffn.fc3.weight": torch.ones(1)})),
        (ValueError, "Layer count", lambda s: s.update({"model.layers.2.attn.wz.weight": torch.ones(1)})),
        (ValueError, "Shape mismatch.*omega", lambda s: s.update({"model.layers.1.attn.cema.omega": torch.ones(3)})),
        (ValueError, "lm_head", lambda s: s.update({"lm_head.weight": torch.ones(64, 32)})),
        (ValueError, "rope_base", lambda s: s.update({ROPE: torch.ones(4)})),
        (ValueError, "rope_base", lambda s: s.update({ROPE: s[ROPE] * torch.tensor([1, 1, 1, 1.0001])})),
        (ValueError, "num_heads is 2 in the config and 4", lambda s: s.update({ROPE: torch.ones(2)})),
    ],
)
def test_strict_loading(kind, message, change):
    with pytest.raises(kind, match=message):
        convert.load_weights_from_torch(models.build(), broken(change))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="Checkpoint not found"):
        convert.load_from_pretrained(tmp_path / "none.safetensors", models.config(), key=jax.random.key(0))


def test_sensitive_parameters():
    model = models.build()
    low = map_parameters(lambda _, leaf: leaf.astype(jnp.bfloat16), model)
    found = audit_sensitive_param_dtypes(low)
    assert len(found) == 2 * (6 + 2 + 2 + 1 + 2) + 2
    assert not any(name.startswith("model.") for name in found)
    assert found.keys() == audit_sensitive_param_dtypes(low.model).keys()
    restored = ensure_sensitive_param_dtype(low)
    assert not audit_sensitive_param_dtypes(restored)
    assert restored.model.embed.weight.dtype == jnp.bfloat16


@pytest.mark.parametrize("scale_emb", [False, True])
def test_cast_weights_changes_no_output(scale_emb):
    model = models.build(compute_dtype=jnp.bfloat16, num_layers=1, scale_emb=scale_emb)
    cast = cast_weights(model)
    assert cast.model.layers[0].attn.wz.weight.dtype == jnp.bfloat16
    assert cast.model.embed.weight.dtype == (jnp.float32 if scale_emb else jnp.bfloat16)
    assert jnp.array_equal(cast(models.ids())[0], model(models.ids())[0])


@pytest.mark.parametrize(
    "dtype", [jnp.float32, "bfloat16", torch.bfloat16, torch.float16, np.dtype("float64"), torch.float64]
)
def test_dtypes_of_jax_and_torch_mean_the_same(dtype):
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else jnp.dtype(dtype).name
    model = models.build(num_layers=1)
    for key, tensor in convert.convert_jax_to_torch(model, dtype=dtype, include_rope_inv_freq=True).items():
        assert tensor.dtype == (torch.float32 if is_sensitive(key) else getattr(torch, name)), key


@pytest.mark.parametrize("dtype", [torch.int8, jnp.int32, "complex64", "nonsense", jnp.float8_e4m3fn, 3])
def test_dtypes_that_are_no_weights(dtype):
    with pytest.raises(ValueError, match="dtype must be"):
        convert.convert_jax_to_torch(models.build(num_layers=1), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_of_any_dtype(dtype, tmp_path):
    """Every number as it is there, rotary tables compared as exactly as they are rounded."""
    model, path = models.build(num_layers=1), tmp_path / "model.safetensors"
    convert.save_safetensors(model, path, dtype=dtype, include_rope_inv_freq=True)
    loaded = convert.load_from_pretrained(path, model.config)
    for name, value in named_parameters(loaded).items():
        given = np.asarray(named_parameters(model)[name])
        rounded = given if is_sensitive(name) else given.astype(convert.tensors.as_dtype(dtype)).astype(np.float32)
        np.testing.assert_array_equal(value, rounded, err_msg=name)
    state = convert.convert_jax_to_torch(model, dtype=dtype, include_rope_inv_freq=True)
    state[ROPE] = (state[ROPE].double() * (1 + 3 * max(2e-6, torch.finfo(dtype).eps))).to(dtype)
    with pytest.raises(ValueError, match="does not match rope_base"):
        convert.load_weights_from_torch(model, state)


@pytest.mark.parametrize(
    ("other", "wider", "little"),
    [(torch.float64, "lm_head.weight", 1e-12), (torch.bfloat16, "model.embed.weight", 1e-4)],
)
def test_a_tied_head_of_another_dtype(other, wider, little):
    """It is the embedding if its numbers are, whatever they are stored in; a difference counts that one cannot hold."""
    model = models.build(num_layers=1)
    state = convert.convert_jax_to_torch(model)
    embedding = state["model.embed.weight"].to(torch.bfloat16)
    state |= {"model.embed.weight": embedding.float(), "lm_head.weight": embedding.to(other)}
    loaded = convert.load_weights_from_torch(model, state)
    np.testing.assert_array_equal(loaded.model.embed.weight, embedding.float().numpy())
    state[wider][1, 1] *= 1 + little
    with pytest.raises(ValueError, match="differs from the embedding"):
        convert.load_weights_from_torch(model, state)


def test_state_dicts_that_are_none():
    model, norm = models.build(num_layers=1), "model.norm.weight"
    state = convert.convert_jax_to_torch(model)
    for changes, message in (
        ({3: state[norm]}, "tensors by name, got the key 3"),
        ({norm: state[norm].to_sparse()}, f"{norm} is no ordinary tensor: torch.sparse_coo"),
        ({norm: state[norm].to("meta")}, f"{norm} is no ordinary tensor: torch.strided, on meta"),
        ({norm: None}, f"{norm}.*got"),
    ):
        with pytest.raises(ValueError, match=message):
            convert.load_weights_from_torch(model, state | changes)


def test_models_of_the_release_are_not_exported_as_others(tmp_path):
    model = models.build(num_layers=1, variant="original")
    for export in (convert.convert_jax_to_torch, lambda m: convert.save_safetensors(m, tmp_path / "a.safetensors")):
        with pytest.raises(ValueError, match=r"no models of variant='original'; use convert\.save_original_checkpoint"):
            export(model)
    assert list(tmp_path.iterdir()) == []


def test_exported_weights_are_nobody_elses():
    """Neither do torch's in-place updates reach the model, nor the other way round."""
    model = models.build(num_layers=1)
    state = convert.convert_jax_to_torch(model)
    loaded = convert.load_weights_from_torch(model, state)
    with torch.no_grad():
        for tensor in state.values():
            tensor.add_(1.0)
    models.assert_same(loaded, model)


def test_pickles(tmp_path, monkeypatch):
    """Only when asked for, only tensors, and not with a torch whose reader runs code."""
    model, path = models.build(num_layers=1), tmp_path / "model.pt"
    torch.save({"model": {"state_dict": 1}}, path)
    with pytest.raises(ValueError, match="holds no state dict"):
        convert.load_from_pretrained(path, model.config, allow_pickle_checkpoint=True)
    torch.save({"x": Unpicklable()}, path)
    with pytest.raises(ValueError, match="no pickle of tensors"):
        convert.load_from_pretrained(path, model.config, allow_pickle_checkpoint=True)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="no pickle of tensors"):
        convert.load_from_pretrained(path, model.config, allow_pickle_checkpoint=True)
    state = convert.convert_jax_to_torch(model)
    for first, second in (("state_dict", "model"), ("model", "state_dict")):
        torch.save({first: {second: state}}, path)
        models.assert_same(convert.load_from_pretrained(path, model.config, allow_pickle_checkpoint=True), model)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"torch\.save has written since 1\.6"):
        convert.load_from_pretrained(path, model.config, allow_pickle_checkpoint=True)
    norm = "model.norm.weight"
    for value, message in (
        (state[norm].to_sparse(), "no ordinary tensor: torch.sparse_coo"),
        (state[norm].to("meta"), "no ordinary tensor: torch.strided, on meta"),
        (3.0, "is a float, expected a tensor"),
    ):
        torch.save({**state, norm: value}, path)
        with pytest.raises(ValueError, match=message):
            convert.load_from_pretrained(path, model.config, allow_pickle_checkpoint=True)
    endless = {}
    endless["model"] = endless
    torch.save(endless, path)
    with pytest.raises(ValueError, match="model is a dict, expected a tensor"):
        convert.load_from_pretrained(path, model.config, allow_pickle_checkpoint=True)
    torch.save({1: state[norm]}, path)
    with pytest.raises(ValueError, match="expected tensors by name"):
        convert.load_from_pretrained(path, model.config, allow_pickle_checkpoint=True)
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    with pytest.raises(RuntimeError, match=r"CVE-2026-24747\); install torch 2.10"):
        convert.load_from_pretrained(path, model.config, allow_pickle_checkpoint=True)


def test_flipped_bytes_in_a_pickle(tmp_path):
    """torch itself does not compare the checksums."""
    model, path = models.build(num_layers=1), tmp_path / "model.pt"
    state = convert.convert_jax_to_torch(model)
    torch.save(state, path)
    whole = path.read_bytes()
    place = whole.index(state["model.layers.0.attn.wv.weight"].numpy().tobytes()) + 100
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ValueError, match=r"is damaged: .*/data/.* is not what was written"):
        convert.load_from_pretrained(path, model.config, allow_pickle_checkpoint=True)
    for kept in (len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="damaged"):
            convert.load_from_pretrained(path, model.config, allow_pickle_checkpoint=True)


def test_pickles_without_torch(tmp_path, monkeypatch):
    (tmp_path / "model.pt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"megalodon-pallas\[torch\]"):
        convert.load_from_pretrained(tmp_path / "model.pt", models.config(), allow_pickle_checkpoint=True)


def test_flipped_bytes_in_the_directory_of_a_pickle(tmp_path):
    """Which make zipfile take stored bytes for compressed ones, or the file for one of several."""
    config, path = models.config(num_layers=1), tmp_path / "model.pt"
    torch.save({"x": torch.arange(64.0)}, path)
    whole = path.read_bytes()
    entry, locator = whole.index(b"PK\x01\x02"), whole.index(b"PK\x06\x07")
    for place, values in ((entry + 10, (8, 12, 14)), (locator + 16, (3,)), (entry, (0,))):
        for value in values:
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            with pytest.raises(ValueError, match=r"model\.pt is damaged"):
                convert.load_from_pretrained(path, config, allow_pickle_checkpoint=True)


class Unpicklable:
    """What a restricted reader does not know."""
