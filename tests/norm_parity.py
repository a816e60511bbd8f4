"""Parity tests of timestep_norm and of a model around it, shared by the interpreted, executed-IR and GPU lanes."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bench import parity
from megalodon_jax.parameters import named_parameters
from pallas_kernels import use_implementation
from pallas_kernels.timestep_norm.specs import LONG, PARITY, Spec
from reference import oracle_numpy_model
from tests import models
from tests.tolerance import MODEL_RELATIVE, assert_policy, errors

SPECS = (*PARITY, *LONG)
IDS = [spec.name for spec in SPECS]
MODEL_DTYPES = (jnp.float32, jnp.bfloat16)
LONGEST_FOR_TORCH = 2048  # its backward walks a graph of every step


@functools.cache
def problem(spec: Spec):
    """Arrays, the float64 oracle's values and gradients, and the XLA reference's."""
    arrays = parity.inputs(spec)
    return arrays, parity.truth(spec, arrays), parity.evaluate(spec, arrays, "xla")


def check(spec: Spec, rung: str) -> None:
    """Kernel, reference, float64 oracle and, where it is installed, the PyTorch oracle, on every value and gradient."""
    arrays, expected, reference = problem(spec)
    if spec.length <= LONGEST_FOR_TORCH:
        oracles_agree(spec)
    lines = parity.compare_values(expected, parity.evaluate(spec, arrays, rung), reference)
    assert {line.name for line in lines} == set(expected)
    for line in lines:
        assert_policy(line)


@functools.cache
def oracles_agree(spec: Spec) -> None:
    """The float64 oracle and, where torch is installed, the PyTorch oracle."""
    arrays, expected, _ = problem(spec)
    for name, value in torch_truth(spec, arrays).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-8, atol=1e-8 * parity.scale(expected[name]))


def torch_truth(spec: Spec, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same values and gradients from the PyTorch oracle in float64; nothing where torch is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    from reference import oracle_torch

    names = [name for name in ("x", "weight", "bias", "mean", "var") if name in arrays]
    moving = {name: torch.tensor(arrays[name].astype(np.float64), requires_grad=True) for name in names}
    fixed = {name: torch.tensor(arrays[name]) for name in ("mask", "segment_ids") if name in arrays}
    state = (torch.tensor(arrays["count"]), moving["mean"], moving["var"]) if spec.state else None
    y, (count, mean, var) = oracle_torch.timestep_norm(
        moving["x"], moving.get("weight"), moving.get("bias"), num_groups=spec.groups, state=state,
        statistics=spec.statistics, **fixed,
    )  # fmt: skip
    cotangents = (torch.tensor(arrays[name].astype(np.float64)) for name in ("dy", "dmean", "dvar"))
    sum((value * cotangent).sum() for value, cotangent in zip((y, mean, var), cotangents, strict=True)).backward()
    values = {"y": y, "state count": count, "state mean": mean, "state var": var}
    gradients = {f"d{name}": tensor.grad for name, tensor in moving.items()}
    return {name: tensor.detach().numpy() for name, tensor in (values | gradients).items()}


def check_model(dtype, implementation: str) -> None:
    """Logits, loss and gradients of a model with the kernels on and off, and against the float64 model."""
    model, ids = models.build(compute_dtype=dtype), models.ids()
    parameters = named_parameters(model)

    def run(implementation: str):
        @eqx.filter_jit
        def everything(model):
            with use_implementation(timestep_norm=implementation):
                loss, gradients = eqx.filter_value_and_grad(lambda m: m.compute_loss(ids, ids))(model)
                return model(ids)[0].astype(jnp.float32), loss, gradients

        return everything(model)

    (logits, loss, gradients), (plain_logits, plain_loss, plain_gradients) = run(implementation), run("xla")
    truth = oracle_numpy_model.logits(parameters, model.config, ids)
    assert errors(logits, truth)[0] <= max(2 * errors(plain_logits, truth)[0], MODEL_RELATIVE)
    relative = MODEL_RELATIVE if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(loss, oracle_numpy_model.loss(parameters, model.config, ids, ids), rtol=relative)
    np.testing.assert_allclose(loss, plain_loss, rtol=relative)
    for value, plain in zip(jax.tree.leaves(gradients), jax.tree.leaves(plain_gradients), strict=True):
        assert errors(value, plain)[0] <= 10 * relative
