"""Several devices: a run on a mesh of the suite's CPU devices is the run on one; what each of them keeps.

There are two of them; `test_eight_devices` runs this file, and that of sequence sharding, once more on eight.
"""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest

from megalodon_jax.training import config as configs
from megalodon_jax.training import loop, models
from megalodon_jax.training.batches import fixed_windows
from megalodon_jax.training.config import TrainingConfig
from megalodon_jax.training.evaluation import Evaluator
from megalodon_jax.training.loop import train
from megalodon_jax.training.metrics import read_metrics
from megalodon_jax.training.optimizer import make_optimizer
from megalodon_jax.training.run import Run
from megalodon_jax.training.sharded import cut_axis, devices_of
from megalodon_jax.training.step import initial_state
from pallas_kernels import use_implementation
from tests import models as small
from tests.bigram import Bigram, train_bigrams

TEXT = b"".join(b"%d green bottles hanging on the wall\n" % (count % 10) for count in range(100))
DEVICES = jax.device_count()
MESHES = [{"data": DEVICES}, {"fsdp": DEVICES}, *([{"data": 4, "fsdp": 2}] if DEVICES == 8 else [])]


class Quiet(Bigram):
    """Without noise, whose keys are others on other devices."""

    def compute_loss(self, *arguments, **options):
        return super().compute_loss(*arguments, **options | {"key": None})


@pytest.fixture
def config(tmp_path, monkeypatch) -> TrainingConfig:
    """Clipped gradients, micro-batches and documents, whose targets that count differ from row to row."""
    train_bigrams(monkeypatch, Quiet)
    (tmp_path / "text").write_bytes(TEXT)
    return TrainingConfig.from_dict(
        {
            "run_dir": str(tmp_path / "one"), "steps": 8, "batch_size": 8, "accumulate": 2, "seed": 5,
            "data": {"path": str(tmp_path / "text"), "sequence_length": 16, "document_separator": 10},
            "optimizer": {"learning_rate": 0.1, "gradient_clip": 0.05},
            "evaluation": {"every": 4, "windows": 7}, "checkpoint": {"every": 3}, "log": {"every": 1},
        }
    )  # fmt: skip


def on(config: TrainingConfig, mesh: dict, **changes) -> TrainingConfig:
    folder = Path(config.run_dir).with_name("_".join(f"{axis}{size}" for axis, size in mesh.items()))
    return dataclasses.replace(config, mesh=configs.Mesh(**mesh), run_dir=str(folder), **changes)


def curve(config: TrainingConfig) -> list[dict]:
    losses = ("train_loss", "validation_loss", "evaluated_train_loss", "sequential_validation_loss")
    kept = ("step", "gradient_norm", *losses)
    records = read_metrics(Path(config.run_dir) / "metrics.jsonl")
    return [{name: record[name] for name in kept if name in record} for record in records]


def assert_close(one: list[dict], other: list[dict]) -> None:
    assert [record.keys() for record in one] == [record.keys() for record in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-6)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_run_on_a_mesh_is_the_run_on_one_device(config, mesh):
    train(config)
    train(on(config, mesh))
    assert_close(curve(on(config, mesh)), curve(config))


def test_a_run_goes_on_exactly_on_its_mesh_and_to_rounding_on_another(config, monkeypatch):
    """It is killed at step 5, and goes on from step 3."""
    train(config)
    straight = on(config, {"fsdp": DEVICES})
    train(straight)
    killed = dataclasses.replace(straight, run_dir=str(Path(config.run_dir).with_name("killed")))
    made = Run.batch

    def batch(self, step):
        if step == 5:
            raise RuntimeError("killed")
        return made(self, step)

    for goes_on in (killed, dataclasses.replace(killed, mesh=configs.Mesh()), on(killed, {"data": DEVICES})):
        goes_on = dataclasses.replace(goes_on, run_dir=killed.run_dir)
        monkeypatch.setattr(Run, "batch", batch)
        with pytest.raises(RuntimeError, match="killed"):
            train(killed, overwrite=True)
        monkeypatch.setattr(Run, "batch", made)
        train(goes_on, resume="auto")
        if goes_on.mesh == straight.mesh:
            assert curve(goes_on) == curve(straight)
        assert_close(curve(goes_on), curve(config))


def test_every_device_keeps_its_part_of_parameters_and_optimizer():
    """All of the state but a few numbers, and vectors of odd length."""
    model = small.build(num_layers=1)

    def kept(mesh: configs.Mesh) -> tuple[int, int]:
        devices = devices_of(mesh, eqx.filter(model, eqx.is_array))
        state, _ = initial_state(model, make_optimizer(configs.Optimizer(), devices.norm), 0, devices)
        leaves = jax.tree.leaves((state.parameters, state.optimizer))
        first = jax.devices()[0]
        shards = [shard for leaf in leaves for shard in leaf.addressable_shards if shard.device == first]
        return sum(shard.data.nbytes for shard in shards), sum(leaf.nbytes for leaf in leaves)

    whole, everything = kept(configs.Mesh(data=DEVICES))
    assert whole == everything
    part, everything = kept(configs.Mesh(fsdp=DEVICES))
    assert everything == whole
    assert part == pytest.approx(whole / DEVICES, rel=0.01)


def test_where_parameters_are_cut():
    shapes = [(6, 8), (8, 8), (6, 7), (5, 7), (), (0, 4), (12, 4, 1)]
    assert [cut_axis(shape, 2) for shape in shapes] == [1, 0, 0, -1, -1, 1, 0]
    assert [cut_axis(shape, 4) for shape in shapes] == [1, 0, -1, -1, -1, 1, 0]
    assert {cut_axis(shape, 1) for shape in shapes} == {-1}


def test_dropout_of_every_device_is_another_one(config, monkeypatch):
    seen = []

    class Noisy(Bigram):
        def compute_loss(self, input_ids, *arguments, key=None, **options):
            if key is not None:
                jax.debug.callback(lambda bits: seen.append(tuple(bits.tolist())), jax.random.key_data(key))
            return super().compute_loss(input_ids, *arguments, key=key, **options)

    train_bigrams(monkeypatch, Noisy)
    train(on(config, {"data": DEVICES}, steps=1, accumulate=1))
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == DEVICES


def test_what_does_not_fit_is_one_line(config):
    with pytest.raises(
        ValueError, match=r"^batch_size must be a multiple of mesh.data \* mesh.fsdp, which is 8, got 4"
    ):
        TrainingConfig.from_dict({"batch_size": 4, "mesh": {"data": 4, "fsdp": 2}})
    with pytest.raises(ValueError, match=r"unknown key mesh.model; the keys are data, fsdp"):
        TrainingConfig.from_dict({"mesh": {"model": 2}})
    with pytest.raises(ValueError, match=rf"mesh \{{data: 4, fsdp: 1\}} is of 4 devices, and there are {DEVICES};"):
        loop.open_run(on(config, {"data": 4}))


@pytest.mark.thorough
@pytest.mark.parametrize("kernels", [False, True], ids=["xla", "interpreted kernels"])
def test_a_megalodon_on_a_mesh(config, monkeypatch, kernels):
    """The kernels see arrays of one device: they run inside shard_map."""
    monkeypatch.setattr(models, "build", lambda config, key: small.build(vocab_size=256, num_layers=1))
    optimizer = dataclasses.replace(config.optimizer, learning_rate=1e-3)
    data = dataclasses.replace(config.data, document_separator=None)
    evaluation = dataclasses.replace(config.evaluation, sequential="validation")
    config = dataclasses.replace(config, accumulate=1, steps=5, data=data, optimizer=optimizer, evaluation=evaluation)
    train(config)
    ops = ("complex_ema", "timestep_norm", "chunked_attention", "feature_norm", "normalized_rotary")
    for mesh in MESHES[1:] if kernels else MESHES:
        with use_implementation(**dict.fromkeys(ops, "triton_interpret" if kernels else "xla")):
            train(on(config, mesh))
        for mine, theirs in zip(curve(on(config, mesh)), curve(config), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4 if kernels else 1e-5)


@pytest.mark.thorough
def test_many_batches_are_evaluated_one_after_the_other():
    """Many of them at a time, and eight CPU devices wait for each other for ever."""
    parameters, static = eqx.partition(small.build(vocab_size=256), eqx.is_array)
    devices = devices_of(configs.Mesh(**MESHES[-1]), parameters)
    windows = fixed_windows(np.frombuffer(4 * TEXT, np.uint8), 16, None)
    on_one = Evaluator(static, 8).windows(parameters, windows)
    on_all = Evaluator(static, 8, devices).windows(devices.spread(parameters), windows)
    assert on_all == pytest.approx(on_one, rel=1e-6)


@pytest.mark.thorough
@pytest.mark.skipif(DEVICES == 8, reason="these are the eight")
def test_eight_devices():
    """In a process of their own: how many devices there are is settled when jax starts."""
    files = [str(Path(__file__)), str(Path(__file__).with_name("test_sequence_sharding.py"))]
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *files, "-m", "thorough or not thorough"],
        capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": flags}, check=False,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-5000:]
