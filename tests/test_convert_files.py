"""Checkpoint files from anywhere: whole and of this model, or refused with nothing allocated; never half written."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import textwrap
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from megalodon_jax import MegalodonConfig, MegalodonForCausalLM, atomic, files
from megalodon_jax.convert import load_from_pretrained, load_weights_from_torch, save_safetensors
from megalodon_jax.convert.shards import INDEX
from megalodon_jax.files import TensorFile
from megalodon_jax.parameters import named_parameters
from tests import models

WV, WR = "model.layers.0.attn.wv.weight", "model.layers.0.attn.wr.weight"


@pytest.fixture(scope="module")
def model():
    return models.build()


@pytest.fixture
def tensors(model, tmp_path):
    """What a file of the model holds, as another program would write it: without a digest."""
    save_safetensors(model, tmp_path / "whole.safetensors")
    found = load_file(tmp_path / "whole.safetensors")
    (tmp_path / "whole.safetensors").unlink()
    return found


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_one_file_and_several_are_bit_exact(dtype, tmp_path):
    model = models.build(param_dtype=dtype or "float32")
    save_safetensors(model, tmp_path / "one.safetensors", dtype=dtype)
    save_safetensors(model, tmp_path / "several", dtype=dtype, max_shard_bytes=9000)
    shards = sorted(path.name for path in (tmp_path / "several").iterdir())
    assert shards[-1] == INDEX
    assert len(shards) > 5
    assert shards[0] == f"model-00001-of-{len(shards) - 1:05d}.safetensors"
    for path in ("one.safetensors", "several", f"several/{INDEX}"):
        models.assert_same(load_from_pretrained(tmp_path / path, model.config), model)
    with safe_open(tmp_path / "one.safetensors", framework="np") as file:
        assert file.metadata()["format"] == "pt"  # what transformers asks for
    library = load_file(tmp_path / "one.safetensors")
    assert library.pop("lm_head.weight").tobytes() == library["model.embed.weight"].tobytes()
    for name, value in named_parameters(model).items():
        assert library[name].tobytes() == np.asarray(value).tobytes()


def test_tensors_come_and_go_one_by_one(tmp_path):
    """Beside the model the largest tensor is held, not all of them."""
    model = MegalodonForCausalLM(
        models.config(vocab_size=4096, model_dim=256, num_layers=12, ffn_hidden_dim=1024), key=jax.random.key(0)
    )
    sizes = [leaf.size * 2 for leaf in named_parameters(model).values()]
    largest, path = max(sizes), tmp_path / "model.safetensors"
    assert sum(sizes) > 4 * largest
    save_safetensors(model, path, dtype=jnp.bfloat16)
    load_from_pretrained(path, model.config, jnp.bfloat16)  # what tracing leaves in caches is not measured
    tracemalloc.start()
    save_safetensors(model, path, dtype=jnp.bfloat16)
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    load_from_pretrained(path, model.config, jnp.bfloat16)
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(written, read) < 2 * largest + sum(sizes) // 4


def refused(tensors, change, path) -> None:
    changed = dict(tensors)
    change(changed)
    save_file(changed, path)
    load_from_pretrained(path, models.config())


@pytest.mark.parametrize(
    ("kind", "message", "change"),
    [
        (KeyError, "Missing key.*wv.weight", lambda t: t.pop(WV)),
        (ValueError, "Unknown keys.*extra", lambda t: t.update(extra=np.ones(1, np.float32))),
        (ValueError, r"expected \(48, 32\), got \(32, 48\)", lambda t: t.update({WR: t[WR].T.copy()})),
        (ValueError, "value_dim is 48 in the config and 32 in", lambda t: t.update({WV: t[WV].T.copy()})),
        (ValueError, "must be floating, got int32", lambda t: t.update({WV: t[WV].astype(np.int32)})),
    ],
)
def test_a_file_of_another_model_is_refused_before_anything_is_read(
    kind, message, change, tensors, tmp_path, monkeypatch
):
    monkeypatch.setattr(TensorFile, "read", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(kind, match=message):
        refused(tensors, change, tmp_path / "model.safetensors")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(bad, tensors, model, tmp_path):
    wrong = tensors[WV].copy()
    wrong[3, 5] = bad
    with pytest.raises(ValueError, match=f"{WV} has 1 values that are NaN or infinite"):
        refused(tensors, lambda t: t.update({WV: wrong}), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="NaN or infinite"):
        load_weights_from_torch(model, tensors | {WV: wrong})


def test_every_flipped_byte_is_found(model, tmp_path):
    """In the header, in the digest and in the tensors."""
    path = tmp_path / "model.safetensors"
    save_safetensors(model, path)
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    places = [*range(0, header, 97), *range(header, len(whole), 997), len(whole) - 1]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises((ValueError, KeyError), match=r"damaged|not a whole|Missing|Unknown|mismatch"):
            load_from_pretrained(path, model.config)
    for size in (0, 4, header // 2, header, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"not a whole|damaged"):
            load_from_pretrained(path, model.config)


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    one = b'"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = b"{" + one + b"," + one + b"}"
    header += b" " * (-len(header) % 8)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_from_pretrained(tmp_path / "model.safetensors", models.config())


def index_of(folder, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_an_index_may_name_files_beside_it_only(model, tmp_path):
    folder = tmp_path / "several"
    save_safetensors(model, folder, max_shard_bytes=9000)
    save_safetensors(model, tmp_path / "outside.safetensors")
    index = (folder / INDEX).read_text()
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "a/b.safetensors", "x.pt", "..", ""):
        index_of(folder, lambda where, name=name: where.update({WV: name}))
        with pytest.raises(ValueError, match=r"names .*expected the name of a .safetensors file beside it"):
            load_from_pretrained(folder, model.config)
        (folder / INDEX).write_text(index)
    index_of(folder, lambda where: where.pop(WV))
    with pytest.raises(ValueError, match=f"does not fit model-.*{WV}"):
        load_from_pretrained(folder, model.config)
    (folder / INDEX).write_text(index.replace(f'"{WV}":', f'"{WV}": "x.safetensors", "{WV}":'))
    with pytest.raises(ValueError, match=f"{WV} is in it twice"):
        load_from_pretrained(folder, model.config)
    for text in ("", "[]", "{}", '{"weight_map": {"a": 1}}'):
        (folder / INDEX).write_text(text)
        with pytest.raises(ValueError, match="is no index"):
            load_from_pretrained(folder, model.config)
    (folder / INDEX).write_text(index)
    (folder / json.loads(index)["weight_map"][WV]).unlink()
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_from_pretrained(folder, model.config)
    with pytest.raises(FileNotFoundError, match="holds neither"):
        load_from_pretrained(tmp_path, model.config)


def test_several_files_need_a_new_folder(model, tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there already"):
        save_safetensors(model, tmp_path / "there", max_shard_bytes=9000)
    with pytest.raises(ValueError, match="positive"):
        save_safetensors(model, tmp_path / "new", max_shard_bytes=0)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_safetensors(model, tmp_path / "new", max_shard_bytes=9000)
    assert os.listdir(tmp_path) == ["there"]


def test_new_files_follow_no_link_and_leave_nothing(tmp_path, monkeypatch):
    """Not even one at the name that the new file has until it is whole; its permissions are what the umask leaves."""
    path, outside = tmp_path / "a.safetensors", tmp_path / "outside"
    outside.write_text("mine")
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda _: "taken")
    (tmp_path / "a.safetensors.taken.tmp").symlink_to(outside)
    with pytest.raises(FileExistsError, match="taken"):
        files.write(path, {}, {})
    assert outside.read_text() == "mine"
    assert not path.exists()
    assert (tmp_path / "a.safetensors.taken.tmp").is_symlink()  # somebody else's
    monkeypatch.undo()
    path.symlink_to(outside)
    mask = os.umask(0o027)
    try:
        files.write(path, {"x": np.ones(2)}, {})
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640
    assert outside.read_text() == "mine"
    assert not path.is_symlink()


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; give the name of a file in it"):
        save_safetensors(models.build(), tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_replaced_while_it_is_opened(tmp_path, monkeypatch):
    """Its bytes are not those of the checksum read before; it is not called damaged."""
    path = tmp_path / "a.safetensors"
    files.write(path, {"x": np.ones(2)}, {})

    def other(path, **options):
        files.write(path, {"x": np.zeros(2)}, {})
        return safe_open(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(files, "safe_open", other)
        with pytest.raises(ValueError, match="was replaced while it was opened; load it again"):
            TensorFile(path)
    assert not TensorFile(path).read("x").any()


def run(program: str, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


TINY = {"vocab_size": 8, "model_dim": 8, "num_layers": 1, "z_dim": 4, "value_dim": 8, "ffn_hidden_dim": 8,
        "cema_ndim": 2, "chunk_size": 8, "norm_num_groups": 2}  # fmt: skip


def test_a_kill_before_the_rename_leaves_the_old_file(tmp_path):
    """By SIGKILL, with the new file written beside it."""
    path, config = tmp_path / "model.safetensors", MegalodonConfig(**TINY)
    old = MegalodonForCausalLM(config, key=jax.random.key(0))
    save_safetensors(old, path)
    killed = run(
        """
        import os, signal, sys
        import jax
        from megalodon_jax import MegalodonConfig, MegalodonForCausalLM
        from megalodon_jax.convert import save_safetensors

        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        model = MegalodonForCausalLM(MegalodonConfig.from_json(sys.argv[2]), key=jax.random.key(1))
        save_safetensors(model, sys.argv[1])
        """,
        path, config.to_json(),
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    there, left = sorted(os.listdir(tmp_path))
    assert there == "model.safetensors"
    assert re.fullmatch(r"model\.safetensors\.[0-9a-f]{8}\.tmp", left)
    models.assert_same(load_from_pretrained(path, config), old)
    save_safetensors(old, path)  # what lies beside it is in nobody's way
    assert sorted(os.listdir(tmp_path)) == [there, left]


def test_torch_is_needed_for_torch_only(tmp_path):
    finished = run(
        """
        import sys
        sys.modules["torch"] = None  # not installed
        import jax
        from megalodon_jax import MegalodonConfig, MegalodonForCausalLM
        from megalodon_jax.convert import convert_jax_to_torch, load_from_pretrained, save_safetensors

        config = MegalodonConfig.from_json(sys.argv[2])
        model = MegalodonForCausalLM(config, key=jax.random.key(1))
        save_safetensors(model, sys.argv[1], dtype="bfloat16")
        load_from_pretrained(sys.argv[1], config)
        try:
            convert_jax_to_torch(model)
        except ImportError:
            print("needs torch")
        """,
        tmp_path / "model.safetensors", MegalodonConfig(**TINY).to_json(),
    )  # fmt: skip
    assert finished.stdout == "needs torch\n", finished.stderr
