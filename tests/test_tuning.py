"""Where tiles come from: override, tuning cache, heuristic; and what a cache file that makes no sense does."""

import json
import logging

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import AttentionTiles, Tiles, chunked_attention, compile_for, explain, timestep_norm, use_tiles
from pallas_kernels import _settings as settings
from pallas_kernels import _tuning as tuning

X = jax.ShapeDtypeStruct((8, 4096, 1024), jnp.bfloat16)
FORWARD = "timestep_norm_forward"
SHAPE = (
    ("batch", 8), ("dtype", "bfloat16"), ("features", 1024), ("groups", 32), ("length", 4096),
    ("statistics", "token_mean"),
)  # fmt: skip
TUNED = Tiles(block_length=64, num_chunks=1, num_warps=2)


def forward_launch():
    with compile_for("sm_90"):
        rows = {row.implementation: row for row in explain(timestep_norm, X, num_groups=32).rows}
    assert rows["triton"].chosen
    return next(launch for launch in rows["triton"].launches if launch.kernel == FORWARD)


def test_heuristic_then_cache_then_override():
    assert forward_launch().source == "heuristic"
    entry = (FORWARD, "sm_90", SHAPE, TUNED)
    with settings.settings_context(settings.Settings(tuned=(entry,))):
        assert (forward_launch().tiles, forward_launch().source) == (TUNED, "tuning cache")
        with use_tiles(timestep_norm_forward=Tiles(32, 1, 1)):
            assert (forward_launch().tiles, forward_launch().source) == (Tiles(32, 1, 1), "override")
            assert "32 tokens, 1 chunk, 1 warp (override)" in str(forward_launch())
    other = (FORWARD, "sm_80", SHAPE, TUNED)
    with settings.settings_context(settings.Settings(tuned=(other,))):
        assert forward_launch().source == "heuristic"


def test_attention_with_an_activation_is_a_problem_of_its_own():
    q = jax.ShapeDtypeStruct((2, 512, 1, 64), jnp.bfloat16)
    shape = {
        "batch": 2, "length": 512, "heads": 1, "depth": 64, "width": 64, "chunk": 256, "dtype": "bfloat16",
        "masked": 0, "packed": 0, "cached": 0, "precision": "float32",
    }  # fmt: skip
    tiles = AttentionTiles(64, 64, 64, 64, 4, 2)

    def source(**options) -> str:
        with compile_for("sm_90"):
            rows = explain(chunked_attention, q, q, q, chunk_size=256, **options).rows
        return next(row for row in rows if row.chosen).launches[0].source

    for own, options in (({}, {}), ({"v_activation": "silu"}, {"v_activation": "silu"})):
        entry = ("chunked_attention_forward", "sm_90", tuple(sorted((shape | own).items())), tiles)
        with settings.settings_context(settings.Settings(tuned=(entry,))):
            assert source(**options) == "tuning cache"
            assert source(v_activation=None if options else "silu") == "heuristic"


def test_round_trip_through_the_file(tmp_path):
    file = tmp_path / "deep" / "tuning.json"
    entries = ((FORWARD, "sm_90", SHAPE, TUNED), ("timestep_norm_backward", "sm_80", SHAPE, Tiles(8, 2, 1)))
    tuning.write_cache(file, entries)
    assert tuning.read_cache(file) == entries
    assert [f.name for f in file.parent.iterdir()] == ["tuning.json"]
    assert tuning.read_cache(tmp_path / "none.json") == ()


def valid():
    tiles = {"block_length": 64, "num_chunks": 1, "num_warps": 2}
    return {"version": 1, "entries": [{"kernel": FORWARD, "target": "sm_90", "shape": dict(SHAPE), "tiles": tiles}]}


BAD = {
    "not json": "{",
    "a list": "[]",
    "version": json.dumps({**valid(), "version": 2}),
    "no entries": json.dumps({"version": 1}),
    "tiles": json.dumps(valid()).replace('"block_length": 64', '"block_length": 63'),
    "unknown field": json.dumps(valid()).replace("num_warps", "warps"),
    "sizes": json.dumps(valid()).replace('"batch": 8', '"batch": [8]'),
    "unknown kernel": json.dumps(valid()).replace(FORWARD, "fast_norm"),
    "unknown target": json.dumps(valid()).replace("sm_90", "sm_91"),
    "true": json.dumps(valid()).replace('"num_chunks": 1', '"num_chunks": true'),
    "nested": "[" * 100_000,
    "no shape": json.dumps(valid()).replace('"shape"', '"form"'),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_cache_is_named_and_left_out(name, tmp_path, monkeypatch, caplog):
    file = tmp_path / "tuning.json"
    file.write_text(BAD[name])
    with pytest.raises(ValueError, match=r"tuning\.json is not a tuning cache"):
        tuning.read_cache(file)
    monkeypatch.setenv("PALLAS_KERNELS_CACHE_DIR", str(tmp_path))
    before = settings.current()
    with caplog.at_level(logging.WARNING, "pallas_kernels"):
        tuning.load_cache()
    assert settings.current() == before
    assert str(file) in caplog.text
    assert file.read_text() == BAD[name]


def test_load_cache_reaches_the_choice(tmp_path, monkeypatch):
    tuning.write_cache(tmp_path / "tuning.json", ((FORWARD, "sm_90", SHAPE, TUNED),))
    monkeypatch.setenv("PALLAS_KERNELS_CACHE_DIR", str(tmp_path))
    before = settings.current()
    try:
        tuning.load_cache()
        assert forward_launch().source == "tuning cache"
    finally:
        settings.set_default(before)
    assert forward_launch().source == "heuristic"


@pytest.mark.parametrize(
    ("environment", "end"),
    [
        ({"PALLAS_KERNELS_CACHE_DIR": "/a"}, "/a/tuning.json"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/megalodon-pallas/tuning.json"),
        ({}, "/.cache/megalodon-pallas/tuning.json"),
    ],
)
def test_place_of_the_cache(environment, end):
    assert str(tuning.cache_file(environment)).endswith(end)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"block_length": 48, "num_chunks": 1, "num_warps": 4}, "block_length must be a power of two"),
        ({"block_length": 64, "num_chunks": 0, "num_warps": 4}, "num_chunks must be a positive int"),
        ({"block_length": 64, "num_chunks": 1, "num_warps": 32}, "at most 16"),
    ],
)
def test_tiles_that_cannot_be_launched(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Tiles(**kwargs)


@pytest.mark.usefixtures("unhooked")
def test_use_tiles_wants_a_known_kernel_and_tiles():
    with pytest.raises(ValueError, match="timestep_norm_forward, timestep_norm_backward"), use_tiles(norm=TUNED):
        pass
    with (
        pytest.raises(TypeError, match="must be of type Tiles, got dict"),
        use_tiles(timestep_norm_forward={"block_length": 4}),
    ):
        pass


def test_tiles_that_are_too_long_for_the_problem():
    long = Tiles(2**20, 1, 4)
    with use_tiles(timestep_norm_forward=long), pytest.raises(ValueError, match="at most 2048"):
        forward_launch()
    with settings.settings_context(settings.Settings(tuned=((FORWARD, "sm_90", SHAPE, long),))):
        assert forward_launch().source == "heuristic"


def test_no_home_directory_is_no_reason_to_fail(monkeypatch, caplog):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    for name in ("PALLAS_KERNELS_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tuning.Path, "home", nowhere)
    tuning.load_cache()
    assert "home directory" in caplog.text
