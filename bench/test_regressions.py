"""Wall time of every op and of a training step, for pytest-benchmark to keep and compare from commit to commit.

    pytest bench --benchmark-only --benchmark-autosave
    pytest bench --benchmark-only --benchmark-compare --benchmark-compare-fail=median:20%

On an NVIDIA GPU at full size, kernels included; elsewhere at small sizes. Launches are part of the time: what a kernel
takes by itself `python -m bench gpu` says.
"""

import jax
import jax.numpy as jnp
import pytest

from bench import ops, problems
from bench.gpu import suite_ops
from bench.gpu.suite_model import TINY
from bench.model_programs import MODEL_S, program
from bench.modes import FORWARD, FORWARD_BACKWARD, build, timed_compile
from bench.programs import Program

GPU = jax.default_backend() == "gpu"
SPECS = problems.chosen(ops.PRESETS, suite_ops.NAMES) if GPU else problems.chosen(ops.PARITY, ["heuristic tiles"])


@pytest.mark.parametrize("implementation", ["xla", "triton"] if GPU else ["xla"])
@pytest.mark.parametrize("mode", [FORWARD, FORWARD_BACKWARD])
@pytest.mark.parametrize("title", SPECS)
def test_op(benchmark, title, mode, implementation):
    """One program of an op."""
    inputs = jax.tree.map(jnp.asarray, ops.of(SPECS[title]).inputs(SPECS[title]))
    benchmark(build(SPECS[title], mode, implementation, inputs, seed=0).run)


@pytest.mark.parametrize("name", ["forward", "training"])
def test_model(benchmark, name):
    """A program of a whole model, its parameters and ids all ones."""
    jitted, abstract = program(name, MODEL_S if GPU else TINY)
    arguments = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), abstract)
    benchmark(Program(timed_compile(jitted, *arguments)[0], arguments))
