"""Parity of all kernels, and of a model around them, shared by the interpreted, executed-IR and GPU lanes."""

import functools
from collections.abc import Sequence
from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from bench import ops, parity
from megalodon_jax.parameters import named_parameters
from pallas_kernels import use_implementation
from pallas_kernels._settings import OPS
from pallas_kernels.chunked_attention import specs as attention
from pallas_kernels.complex_ema import specs as ema
from pallas_kernels.feature_norm import specs as features
from pallas_kernels.fused_linear import specs as linear
from pallas_kernels.linear_cross_entropy import specs as cross_entropy
from pallas_kernels.normalized_rotary import specs as rotary
from pallas_kernels.timestep_norm import specs as norm
from reference import oracle_numpy_model
from tests import models
from tests.tolerance import as_float64, assert_close, assert_policy
from tests.torch_truth import torch_truth

NORM, EMA, LONG_EMA = (*norm.PARITY, *norm.LONG), ema.PARITY, ema.LONG
ATTENTION, ROTARY, LINEAR = attention.PARITY, rotary.PARITY, linear.PARITY
FEATURES, CROSS_ENTROPY = features.PARITY, cross_entropy.PARITY
MODEL_DTYPES = (jnp.float32, jnp.bfloat16)
LONGEST_FOR_TORCH = 2048  # its backward walks a graph of every step


# What is compiled for a GPU is what is executed as IR; the interpreter, the slower of the two, is for `make test-all`.
on_both_rungs = pytest.mark.parametrize(
    "rung", [pytest.param("triton_interpret", marks=pytest.mark.thorough), "lowered"]
)


def everyday(specs: Sequence[ops.Spec], *names: str) -> list:
    """The specs as parameters of a test; all but the named ones are left to `make test-all`."""
    assert set(names) <= {spec.name for spec in specs}
    return [pytest.param(spec, marks=() if spec.name in names else pytest.mark.thorough) for spec in specs]


def all_but(specs: Sequence[ops.Spec], *names: str) -> list:
    """The specs as parameters of a test; the named ones are left to `make test-all`."""
    return everyday(specs, *(spec.name for spec in specs if spec.name not in names))


def first(values: Sequence, count: int) -> list:
    """The values as parameters of a test; all but the first few are left to `make test-all`."""
    return [*values[:count], *(pytest.param(value, marks=pytest.mark.thorough) for value in values[count:])]


@functools.cache
def problem(spec: ops.Spec):
    """Arrays, the float64 oracle's values and gradients, and the XLA reference's."""
    arrays = ops.of(spec).inputs(spec)
    return arrays, ops.of(spec).truth(spec, arrays), parity.evaluate(spec, arrays, "xla")


def check(spec: ops.Spec, rung: str) -> None:
    """Kernel, reference, float64 oracle and, where it is installed, the PyTorch oracle, on every value and gradient."""
    arrays, expected, reference = problem(spec)
    if spec.length <= LONGEST_FOR_TORCH:
        oracles_agree(spec)
    lines = parity.compare_values(expected, parity.evaluate(spec, arrays, rung), reference)
    assert {line.name for line in lines} == set(expected)
    for line in lines:
        assert_policy(line)


@functools.cache
def oracles_agree(spec: ops.Spec) -> None:
    """The float64 oracle and, where torch is installed, the PyTorch oracle."""
    arrays, expected, _ = problem(spec)
    for name, value in torch_truth(spec, arrays).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-8, atol=1e-8 * parity.scale(expected[name]))


def check_model(dtype, implementation: str, gemm_backend: str = "default", **changes) -> None:
    """Logits and loss of a model with the kernels on against the float64 model, gradients against the float32 one's
    (there is no float64 gradient without PyTorch), by the policy: beside the same model with the kernels off.

    In bfloat16 of three batches: of a single one either side is lucky in some of so many gradients.
    """
    model = models.build(compute_dtype=dtype, **changes)
    batches = [models.ids(seed=seed) for seed in range(1 if dtype == jnp.float32 else 3)]
    with_kernels = models.build(compute_dtype=dtype, gemm_backend=gemm_backend, **changes)
    kernels, plain = _model_values(with_kernels, batches, implementation), _model_values(model, batches, "xla")
    given = named_parameters(model), model.config
    expected = {
        "logits": np.stack([oracle_numpy_model.logits(*given, ids) for ids in batches]),
        "loss": np.stack([oracle_numpy_model.loss(*given, ids, ids) for ids in batches]),
    }
    if dtype == jnp.float32:
        for name in kernels.keys() - expected.keys():
            assert_close(name, kernels[name], plain[name], units=300)
    else:
        exact = _model_values(models.build(compute_dtype=jnp.float32, **changes), batches, "xla")
        expected |= {name: as_float64(exact[name]) for name in exact.keys() - expected.keys()}
    for line in parity.compare_values(expected, kernels, plain):
        # The loss is one number, in which the reference may be lucky: rounding units of what it is computed in.
        assert_policy(replace(line, dtype=jnp.dtype(dtype).name) if line.name == "loss" else line)


def check_stream(implementation: str, gemm_backend: str = "default") -> None:
    """A stream that calls cut in the middle of chunks, and a token at a time: as in one call of the float64 model."""
    model, ids = models.build(gemm_backend=gemm_backend), models.ids()
    expected = oracle_numpy_model.logits(named_parameters(model), model.config, ids)

    @eqx.filter_jit
    def part(model, ids, cache):
        with use_implementation(**dict.fromkeys(OPS, implementation)):
            return model(ids, cache=cache, return_cache=True)

    cache, start, found = None, 0, []
    for length in (5, 14, 1, 1):
        logits, cache = part(model, ids[:, start : start + length], cache)
        found.append(logits)
        start += length
    assert start == ids.shape[1]
    assert_close("logits", jnp.concatenate(found, axis=1), expected, units=300)


def _model_values(model, batches, implementation: str) -> dict[str, np.ndarray]:
    @eqx.filter_jit
    def everything(model, ids):
        with use_implementation(**dict.fromkeys(OPS, implementation)):
            loss, gradients = eqx.filter_value_and_grad(lambda m: m.compute_loss(ids, ids))(model)
            return model(ids)[0], loss, gradients

    def values(ids) -> dict[str, np.ndarray]:
        logits, loss, gradients = everything(model, ids)
        named = {f"d{name}": gradient for name, gradient in named_parameters(gradients).items()}
        return {name: np.asarray(value) for name, value in ({"logits": logits, "loss": loss} | named).items()}

    found = [values(ids) for ids in batches]
    return {name: np.stack([one[name] for one in found]) for name in found[0]}
