"""Tokens, parts, windows, documents: exact, on small files."""

import gzip
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from megalodon_jax.training.batches import fixed_windows, sliding_windows, training_batch
from megalodon_jax.training.packing import IGNORED, segments
from megalodon_jax.training.prefetch import Prefetch
from megalodon_jax.training.sources import read_tokens
from megalodon_jax.training.splits import split

ENWIK6 = Path(__file__).parents[2] / "shared" / "data" / "enwik6.gz"
TOKENS = np.arange(200, dtype=np.uint8)


def test_bytes_plain_and_packed(tmp_path):
    content = bytes(range(256))
    (tmp_path / "text").write_bytes(content)
    (tmp_path / "text.gz").write_bytes(gzip.compress(content))
    plain, packed = read_tokens(tmp_path / "text"), read_tokens(str(tmp_path / "text.gz"))
    assert plain.dtype == packed.dtype == np.uint8
    assert plain.tobytes() == packed.tobytes() == content
    assert isinstance(plain, np.memmap)


@pytest.mark.parametrize(("kind", "dtype"), [("uint16", "<u2"), ("uint32", "<u4")])
def test_token_files(tmp_path, kind, dtype):
    ids = np.array([0, 1, 65535, 258], dtype)
    (tmp_path / "ids.bin").write_bytes(ids.tobytes())
    np.testing.assert_array_equal(read_tokens(tmp_path / "ids.bin", kind), ids)


def test_files_that_cannot_be_read(tmp_path):
    for name, content in (("empty", b""), ("odd", b"abc"), ("broken.gz", gzip.compress(b"x" * 99)[:-9])):
        (tmp_path / name).write_bytes(content)
    for name, kind, message in (
        ("nowhere", "bytes", "nowhere cannot be read"),
        ("empty", "bytes", "empty holds 0 bytes"),
        ("odd", "uint16", "odd holds 3 bytes; at least one token is needed, and 2 bytes for each"),
        ("broken.gz", "bytes", "ends in .gz but does not decompress"),
        ("", "bytes", "is a folder"),
    ):
        with pytest.raises((ValueError, OSError), match=re.escape(message)):
            read_tokens(tmp_path / name, kind)
    with pytest.raises(ValueError, match=re.escape("give data.path")):
        read_tokens(None, "uint16")


def test_parts_of_enwik8():
    whole = np.broadcast_to(np.uint8(0), 100_000_000)
    assert [len(part) for part in split(whole, "auto")] == [90_000_000, 5_000_000, 5_000_000]
    assert [len(part) for part in split(whole, "seed_95m")] == [85_500_000, 9_500_000, 0]
    assert [len(part) for part in split(whole[:1_000_000], "auto")] == [900_000, 50_000, 50_000]
    for rule, message in (
        ("literature", "data.split literature needs 100,000,000 tokens, the file holds 99"),
        ((0.5, 0.4, 0.2), "must sum to 1"),
        ((0.9, 0.05, 0.05), "99 tokens split into 89, 4 and 6"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            split(whole[:99], rule, least=5)


def test_parts_follow_each_other():
    parts = split(TOKENS, (0.5, 0.25, 0.25))
    np.testing.assert_array_equal(np.concatenate(parts), TOKENS)
    assert len(split(TOKENS, (0.5, 0.5, 0.0)).test) == 0


def test_a_batch_is_a_function_of_seed_and_step():
    make = lambda seed, step: training_batch(TOKENS, seed, step, (2, 3), 16)  # noqa: E731
    batch, again = make(1, 5), make(1, 5)
    assert batch.inputs.shape == batch.targets.shape == (2, 3, 16)
    assert batch.inputs.dtype == batch.targets.dtype == np.int32
    assert batch.segment_ids is None
    np.testing.assert_array_equal(batch.inputs, again.inputs)
    np.testing.assert_array_equal(batch.targets, batch.inputs + 1)  # what follows, in a text that counts
    assert not np.array_equal(batch.inputs, make(1, 6).inputs)
    assert not np.array_equal(batch.inputs, make(2, 5).inputs)


def test_every_window_is_drawn_the_last_one_too():
    batch = training_batch(TOKENS, 0, 0, (1, 64), 198)
    assert set(batch.inputs[0, :, 0]) == {0, 1}
    assert batch.targets.max() == 199


@pytest.mark.parametrize("count", [None, 100])
def test_fixed_windows_predict_every_token_once(count):
    windows = fixed_windows(TOKENS, 16, count)
    targets = windows.targets[windows.targets != IGNORED]
    np.testing.assert_array_equal(targets, TOKENS[1:])


def test_some_fixed_windows_are_spread():
    windows = fixed_windows(TOKENS, 16, 4)
    np.testing.assert_array_equal(windows.inputs[:, 0], [0, 48, 96, 144])
    np.testing.assert_array_equal(windows.inputs, fixed_windows(TOKENS, 16, 4).inputs)


@pytest.mark.parametrize("length", [1, 7, 16, 199, 300])
def test_sliding_windows_predict_every_token_once_in_context(length):
    windows = sliding_windows(TOKENS, length)
    counts = windows.targets != IGNORED
    np.testing.assert_array_equal(windows.targets[counts], TOKENS[1:])
    place = np.broadcast_to(np.arange(length), counts.shape)
    assert place[1:][counts[1:]].min(initial=length) >= length - max(length // 2, 1)


def test_documents_of_a_window():
    window = np.array([[5, 6, 0, 7, 8, 0, 9, 9]], np.int32)
    segment_ids, targets = segments(window, separator=0)
    np.testing.assert_array_equal(segment_ids, [[1, 1, 1, 2, 2, 2, 3]])
    np.testing.assert_array_equal(targets, [[6, 0, IGNORED, 8, 0, IGNORED, 9]])


def test_documents_of_fixed_windows_end_in_padding():
    tokens = np.array([5, 0, 6, 7, 0, 8], np.uint16)
    windows = fixed_windows(tokens, 4, None, separator=0)
    np.testing.assert_array_equal(windows.segment_ids, [[1, 1, 2, 2], [1, 2, 0, 0]])
    np.testing.assert_array_equal(windows.targets, [[0, IGNORED, 7, 0], [IGNORED] * 4])


def test_prefetch_is_one_ahead_and_passes_errors_on():
    made = []

    def make(number: int) -> int:
        made.append((number, threading.current_thread()))
        if number == 5:
            raise ValueError("no batch 5")
        return number * 10

    with Prefetch(make, 3) as numbers:
        assert numbers.next() == 30
        while len(made) < 2:
            time.sleep(0.001)
        assert made[1][0] == 4
        assert numbers.next() == 40
        with pytest.raises(ValueError, match="no batch 5"):
            numbers.next()
    assert all(thread is not threading.main_thread() for _, thread in made)


@pytest.mark.skipif(not ENWIK6.is_file(), reason="the first megabyte of enwik8 is not beside the checkout")
def test_the_beginning_of_enwik8():
    parts = split(read_tokens(ENWIK6), "auto")
    assert [len(part) for part in parts] == [900_000, 50_000, 50_000]
    assert parts.train[:11].tobytes() == b"<mediawiki "
