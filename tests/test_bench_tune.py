"""The search for tiles: by made-up costs, on CPU with interpreted kernels, and with made-up static figures."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest

from bench import __main__ as command_line
from bench import ops
from bench.gpu import roofline, session
from bench.gpu.clock import Sample
from bench.tuning import command, modelled
from bench.tuning.measured import Measure
from bench.tuning.search import Trial, neighbours, search
from pallas_kernels import AttentionTiles, Tiles, compile_for
from pallas_kernels import _dispatch as dispatch
from pallas_kernels import _tuning as tuning
from pallas_kernels._architecture import Architecture
from pallas_kernels._tiles import Launch

START = Tiles(16, 2, 4)
TITLE = "feature_norm: plain"
SPEC = ops.PARITY[TITLE]
FORWARD = "feature_norm_forward"


def far_from(tiles: Tiles):
    """A cost with one minimum."""
    return lambda one: abs(one.block_length - tiles.block_length) + abs(one.num_warps - tiles.num_warps) + 1.0


def test_neighbours_differ_in_one_number():
    found = set(neighbours(Tiles(1, 1, 16)))
    assert found == {Tiles(2, 1, 16), Tiles(1, 2, 16), Tiles(1, 1, 8)}
    stages = {one.num_stages for one in neighbours(AttentionTiles(16, 16, 16, 16, 4, 5))}
    assert stages == {4, 5}


def test_search_goes_to_the_best():
    trials, time_is_up = search(START, far_from(Tiles(128, 2, 1)), deadline=1.0, now=lambda: 0.0)
    assert not time_is_up
    assert min(trials, key=lambda one: one.cost).tiles == Tiles(128, 2, 1)
    assert trials[0] == Trial(START, far_from(Tiles(128, 2, 1))(START))
    assert len({one.tiles for one in trials}) == len(trials)


def test_search_keeps_to_its_time():
    clock = iter(range(100))
    trials, time_is_up = search(START, far_from(Tiles(128, 2, 1)), deadline=3, now=lambda: next(clock))
    assert (len(trials), time_is_up) == (3, True)
    assert search(START, far_from(START), deadline=1.0, now=lambda: 1.0) == ([], True)


def test_search_passes_over_what_cannot_be_launched():
    def cost(tiles):
        if tiles.block_length > 16:
            raise ValueError("too\nlong")
        return far_from(Tiles(128, 2, 1))(tiles)

    trials, _ = search(START, cost, deadline=1.0, now=lambda: 0.0)
    assert Trial(Tiles(32, 2, 4), None, "ValueError: too long") in trials
    assert min((one for one in trials if one.cost), key=lambda one: one.cost).tiles == Tiles(16, 2, 1)

    def broken(tiles):
        raise ValueError("never")

    assert [one.cost for one in search(START, broken, 1.0, lambda: 0.0)[0]] == [None]


TITLES = (
    "complex_ema: chunks, state",
    "timestep_norm: packed",
    "chunked_attention: gated",
    "normalized_rotary: plain",
    "fused_linear: several layers, everything",
    TITLE,
    "linear_cross_entropy: ragged",
)


@pytest.mark.parametrize("title", TITLES)
def test_launches_are_those_of_the_op(title, monkeypatch):
    """The tuning cache is asked for what the search writes into it."""
    spec, found = ops.PARITY[title], []
    plan = dispatch.Implementation.plan

    def noted(self, settings, portable, *args, **kwargs):
        found.extend(self.launches(settings, *args, **kwargs))
        return plan(self, settings, portable, *args, **kwargs)

    monkeypatch.setattr(dispatch.Implementation, "plan", noted)
    function, arrays = ops.of(spec).program(spec, "forward", "triton_interpret")
    with compile_for("sm_80"):
        jax.eval_shape(function, arrays)
    assert tuple(found) == ops.of(spec).launches(spec, Architecture.of("sm_80"))
    assert {launch.target for launch in found} == {"sm_80"}


@pytest.fixture
def cpu(monkeypatch):
    monkeypatch.setattr(roofline, "of_device", lambda *_: None)
    made = session.begin("cpu", rounds=5, seed=0)
    return replace(made, kernel="triton_interpret", clock=lambda run: (run(), Sample(2.0))[1])


def test_tiles_are_measured_and_their_results_looked_at(cpu):
    measure = Measure(SPEC, FORWARD, cpu)
    assert measure.cost(Tiles(16, 1, 4)) == 2.0
    assert measure.cost(Tiles(8, 2, 4)) == 2.0
    assert not measure.faster(Tiles(8, 2, 4), Tiles(16, 1, 4))
    with pytest.raises(ValueError, match="too long here"):
        measure.cost(Tiles(2**20, 1, 4))
    measure._expected = {name: value + 1 for name, value in measure._expected.items()}
    with pytest.raises(ValueError, match="results differ: output"):
        measure.cost(Tiles(16, 1, 4))


class MadeUp:
    """In the place of `Measure`: the fewer chunks the better."""

    def __init__(self, spec, kernel, session):
        self.kernel = kernel

    def cost(self, tiles):
        return float(tiles.num_chunks)

    def faster(self, tiles, than):
        return self.kernel == FORWARD and self.cost(tiles) < self.cost(than)


def test_what_is_faster_is_kept(tmp_path, monkeypatch, cpu, capsys):
    """On a card with fewer multiprocessors than the one its target is named after, where the heuristic differs."""
    spec, smaller = ops.PRESETS["feature_norm: headline"], Architecture("sm_80", 28, "NVIDIA A10")
    (forward, _), nominal = (ops.of(spec).launches(spec, gpu) for gpu in (smaller, Architecture.of("sm_80")))
    assert forward.tiles != nominal[0].tiles
    monkeypatch.setenv("PALLAS_KERNELS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(command, "Measure", MadeUp)
    monkeypatch.setattr(command, "architecture", lambda settings: smaller)
    monkeypatch.setattr(command, "begin", lambda platform: cpu)
    other = (FORWARD, "sm_90", (("features", 7),), Tiles(8, 1, 1))
    tuning.write_cache(tmp_path / "tuning.json", (other,))
    command_line.main(["tune", "--spec", "feature_norm: headline", "--minutes", "1"])
    printed = capsys.readouterr().out
    assert "kept" in printed
    assert str(forward.tiles) in printed
    assert str(nominal[0].tiles) not in printed
    kept, added = tuning.read_cache(tmp_path / "tuning.json")
    assert kept == other
    assert added[:3] == (FORWARD, "sm_80", forward.shape)
    assert added[3].num_chunks == 1
    assert command.merged((kept, added), (*added[:3], Tiles(1, 1, 1))) == (kept, (*added[:3], Tiles(1, 1, 1)))


def test_a_cache_that_cannot_be_written_is_refused_before_anything_is_measured(monkeypatch, cpu, capsys):
    monkeypatch.setenv("PALLAS_KERNELS_CACHE_DIR", "/proc/none")
    monkeypatch.setattr(command, "begin", lambda platform: cpu)
    monkeypatch.setattr(command, "architecture", lambda settings: Architecture.of("sm_80"))
    monkeypatch.setattr(command, "tuned", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit):
        command_line.main(["tune"])
    assert "the tuning cache (PALLAS_KERNELS_CACHE_DIR): expected a folder to write into" in capsys.readouterr().err


def result(*costs: float, time_is_up: bool = False) -> command.Result:
    """Of trials that cost so much; the first one is where the search started."""
    trials = [Trial(Tiles(16, 2**n, 4), cost) for n, cost in enumerate(costs)]
    return command.Result(TITLE, Launch(FORWARD, trials[0].tiles, "heuristic", "sm_80", ()), trials, time_is_up)


def test_tiles_that_fail_side_by_side_are_left_out_and_named():
    def faster(tiles, than):
        if tiles.num_chunks == 4:
            raise RuntimeError("illegal\naddress")
        return True

    found = command.judged(result(3.0, 2.0, 1.0), faster)
    assert found.kept
    assert found.entry[3] == Tiles(16, 2, 4)
    printed = command.text(found)
    reason = "side by side with the first: RuntimeError: illegal address"
    assert f"- left out: {Tiles(16, 4, 4)}: {reason}\n" in printed
    alone = command.judged(result(3.0, 4.0, 1.0), faster)
    assert not alone.kept
    assert alone.ranked[0].tiles == alone.launch.tiles


def test_the_end_of_the_time_is_printed():
    assert "\n3 tried, then the time was up (--minutes).\n" in command.text(result(3.0, 2.0, 1.0, time_is_up=True))
    assert "\n1 tried.\n" in command.text(result(3.0))
    none = replace(result(3.0, time_is_up=True), trials=[])
    assert command.text(none) == f"## {TITLE}, {FORWARD}\n\n0 tried, then the time was up (--minutes).\n"


def test_a_gpu_that_is_too_old_ends_it_in_one_line(monkeypatch, cpu):
    monkeypatch.setattr(
        command, "architecture", lambda settings: "Tesla T4 has compute capability 7.5; 8.0 is the least"
    )
    monkeypatch.setattr(command, "begin", lambda platform: cpu)
    with pytest.raises(SystemExit, match=r"^bench tune: Tesla T4 has compute capability 7\.5; 8\.0 is the least$"):
        command_line.main(["tune"])


def figures(issue_us: float, spills: int = 0, products=None, work: bool = True):
    one = SimpleNamespace(
        name=f"{FORWARD}__1", spill_bytes=spills, products=products,
        work=SimpleNamespace(issue_us=issue_us, bytes_issued=3_352_320) if work else None,
    )  # fmt: skip
    return lambda *args, **kwargs: SimpleNamespace(kernels=(one,))


def test_the_model_ranks():
    cost = lambda made: modelled.cost(SPEC, FORWARD, "sm_90", START, made)  # noqa: E731
    assert cost(figures(5.0)) == pytest.approx(5e-3)
    assert cost(figures(0.1)) == pytest.approx(1e-3)  # memory
    products = SimpleNamespace(tensor_us=7.0, bytes_issued=1)
    assert cost(figures(1.0, products=products)) == pytest.approx(7e-3)
    with pytest.raises(ValueError, match="8 bytes of registers are spilled"):
        cost(figures(1.0, spills=8))
    with pytest.raises(ValueError, match="values decide"):
        cost(figures(1.0, work=False))


def test_without_a_gpu_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PALLAS_KERNELS_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(command.tools, "missing", lambda: None)
    monkeypatch.setattr(command.modelled, "cost", lambda spec, kernel, target, tiles: float(tiles.num_chunks))
    command_line.main(["tune", "--spec", "feature_norm: headline", "--minutes", "0.1"])
    printed = capsys.readouterr().out
    assert "No GPU is used: ranked by the static model for sm_90; nothing is written." in printed
    assert "feature_norm: headline, feature_norm_backward" in printed
    assert "heuristic" in printed
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(command.tools, "missing", lambda: "install this")
    with pytest.raises(SystemExit, match="install this"):
        command_line.main(["tune"])


def test_bad_arguments(tmp_path, monkeypatch, capsys):
    for arguments, message in ((["--spec", "none"], "no spec 'none'"), (["--minutes", "0"], "not positive")):
        with pytest.raises(SystemExit):
            command_line.main(["tune", *arguments])
        assert message in capsys.readouterr().err
    monkeypatch.setenv("PALLAS_KERNELS_CACHE_DIR", str(tmp_path))
    (tmp_path / "tuning.json").write_text("{")
    with pytest.raises(SystemExit):
        command_line.main(["tune"])
    assert "is not a tuning cache" in capsys.readouterr().err
