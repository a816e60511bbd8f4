"""The benches of inference on a tiny model: they run, agree with what they are measured beside, and can fail."""

import pytest

from bench import cpu_inference, cpu_model, cpu_stream, report
from bench.measure import CpuTime
from tests import kernel_parity, models


def times(*milliseconds: float) -> list[CpuTime]:
    return [CpuTime(ms, 0.0, ms) for ms in milliseconds]


def test_targets_can_be_missed():
    samples = {"forward": times(4, 4, 4), "prefill": times(5, 4, 9)}
    assert cpu_inference._prefill_target("prefill", 64, samples)[1:] == (1.25, True)
    assert not cpu_inference._prefill_target("prefill", 64, samples | {"prefill": times(6, 4, 9)})[2]
    near, again = {"at 100": times(10, 10, 10)}, {"at 100, again": times(11, 9.5, 8)}
    assert cpu_inference._decode_target(near | again | {"at 9": times(10.5, 30, 10)}, 9)[1:] == (
        pytest.approx(0.05),
        True,
    )
    assert not cpu_inference._decode_target(near | again | {"at 9": times(11.5, 11.5, 10)}, 9)[2]


@pytest.mark.thorough
def test_what_is_measured_agrees(tmp_path, monkeypatch):
    """A program that gives other logits than the forward would raise."""
    monkeypatch.setattr(cpu_inference, "BATCHES", (1, 2))
    record = cpu_inference.measure(models.config(num_layers=1, pad_token_id=None), (24,), rounds=1, far=130)
    assert set(record["medians"]) == {"prefill 24", "decode", "generation"}
    assert all(ms > 0 for programs in record["medians"].values() for ms in programs.values())
    printed = cpu_inference.text(record)
    assert "plain scan" in printed
    assert printed.count("target") == 3
    report.write_json(record, tmp_path / "out.json")


@pytest.mark.thorough
def test_the_plain_model_agrees(tmp_path):
    """Over chunks that are whole and one that is not: other logits, gradients or states would raise."""
    tiny = models.config(num_layers=2, pad_token_id=None)
    record = cpu_model.measure(tiny, tiny, (2 * tiny.chunk_size + 3,), rounds=1)
    assert [part.split(",")[0] for part in record["medians"]] == ["forward", "training step", "prefill", "decode"]
    assert cpu_model.text(record).count("target") >= 3
    report.write_json(record, tmp_path / "out.json")


def test_ratios_of_the_model_are_judged():
    samples = {
        "forward, L = 8": {"ours": times(1.0), "plain": times(1.9)},
        "decode, a token": {"ours": times(1.0), "plain": times(9.0), cpu_model.TORCH: times(1.0)},
    }
    assert [(one.figure, one.met) for one in cpu_model.verdicts(samples)] == [(1.9, False), (1.0, True)]


@pytest.mark.parametrize("mode", kernel_parity.first([*cpu_stream.MODES], 1))
def test_a_long_stream_stays_near_float64(mode):
    """In uneven pieces, far beyond chunk and window."""
    errors = cpu_stream.along(mode, 4000)
    assert len(errors) == cpu_stream.PARTS
    assert cpu_stream.small(errors)
    assert not cpu_stream.small([*errors, float("nan")])
