"""The state of a stream in a file: bit for bit, or refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax import init_cache, load_cache, save_cache
from tests import models
from tests.streams import step


@pytest.fixture(scope="module")
def streamed():
    model = models.build(num_layers=2, compute_dtype="bfloat16")
    return model, step(model, models.ids(2, 11), None)[1]


def test_what_is_saved_is_what_is_loaded(streamed, tmp_path):
    model, cache = streamed
    for number, one in enumerate((cache, init_cache(model.config, 2), init_cache(model.config, 2, allocate_ema=True))):
        path = tmp_path / f"{number}.safetensors"
        save_cache(one, path, model.config)
        loaded = load_cache(path, model.config)
        assert jax.tree.structure(loaded) == jax.tree.structure(one)
        for new, old in zip(jax.tree.leaves(loaded), jax.tree.leaves(one), strict=True):
            assert new.dtype == old.dtype
            assert np.asarray(new).tobytes() == np.asarray(old).tobytes()
    ids = models.ids(2, 3)
    np.testing.assert_array_equal(
        *(step(model, ids, one)[0] for one in (cache, load_cache(tmp_path / "0.safetensors", model.config)))
    )


def test_another_model_is_refused(streamed, tmp_path):
    model, cache = streamed
    path = tmp_path / "cache.safetensors"
    save_cache(cache, path, model.config)
    other = dataclasses.replace(model.config, chunk_size=16, rope_base=7.0)
    with pytest.raises(ValueError, match=r"chunk_size 8, not 16; .*rope_base 10000.0, not 7"):
        load_cache(path, other)
    with pytest.raises(ValueError, match="2 layers, the config 1"):
        save_cache(cache, path, dataclasses.replace(model.config, num_layers=1))
    with pytest.raises(ValueError, match=r"not of this config: layer_caches.0.attn.k has shape .*, expected"):
        save_cache(cache, path, dataclasses.replace(model.config, z_dim=32))
    same = dataclasses.replace(
        model.config, rope_base=10000.0, max_cache_len=8, output_size=64, share_emb=True, max_positions=7
    )
    load_cache(path, same)  # other words for it
    trained = dataclasses.replace(model.config, dropout=0.1, use_checkpoint=True, scan_layers=True, eos_token_id=5)
    load_cache(path, trained)  # the same states; and the file is still whole
    for gemm_backend in ("fused", "mxfp8"):
        load_cache(path, dataclasses.replace(model.config, gemm_backend=gemm_backend))


def test_damage_is_refused(streamed, tmp_path):
    model, cache = streamed
    path = tmp_path / "cache.safetensors"
    save_cache(cache, path, model.config)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_cache(path, model.config)
    path.write_bytes(whole[:-10] + bytes([whole[-10] ^ 1]) + whole[-9:])
    with pytest.raises(ValueError, match="is damaged"):
        load_cache(path, model.config)
    assert whole.count(b'chunk_size\\": 8') == 1
    path.write_bytes(whole.replace(b'chunk_size\\": 8', b'chunk_size\\": 9'))
    with pytest.raises(ValueError, match="is damaged"):
        load_cache(path, dataclasses.replace(model.config, chunk_size=9))
    with pytest.raises(FileNotFoundError, match="no file"):
        load_cache(tmp_path / "none", model.config)
    from safetensors.numpy import save_file

    save_file({"k": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="is not a cache"):
        load_cache(path, model.config)


def test_a_file_stays_where_the_new_one_cannot_be_written(streamed, tmp_path, monkeypatch):
    model, cache = streamed
    path = tmp_path / "cache.safetensors"
    save_cache(cache, path, model.config)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_cache(jax.tree.map(jnp.zeros_like, cache), path, model.config)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
