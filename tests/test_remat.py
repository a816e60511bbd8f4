"""Rematerialisation by name of a policy: the same gradients, and which kernels and matmuls run again."""

import dataclasses
from collections import Counter

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jax.extend import core
from jax.interpreters import partial_eval

from megalodon_jax import MegalodonForCausalLM
from megalodon_jax.parameters import named_parameters
from pallas_kernels import compile_for
from tests import kernel_parity, models
from tests.tolerance import assert_close

KEY = jax.random.key(3)
OVERRIDES = ({"use_checkpoint": True}, {"remat": "kernels"}, {"remat": "block", "scan_layers": True})
FORWARD = ("timestep_norm_forward", "complex_ema_forward", "chunked_attention_forward", "normalized_rotary_forward")


def gradients(overrides):
    config = dataclasses.replace(models.config(dropout=0.2, hidden_dropout=0.1, attention_dropout=0.1), **overrides)
    loss = lambda m: m.compute_loss(models.ids(), models.ids(), deterministic=False, key=KEY)  # noqa: E731
    return eqx.filter_jit(eqx.filter_value_and_grad(loss))(MegalodonForCausalLM(config, key=KEY))


@pytest.fixture(scope="module")
def plain():
    return gradients({"remat": "none"})


@pytest.mark.parametrize("overrides", kernel_parity.first(OVERRIDES, 1), ids=str)
def test_nothing_changes_but_memory(overrides, plain):
    value, found = gradients(overrides)
    assert_close("loss", value, plain[0])
    for name, gradient in named_parameters(found).items():
        assert_close(name, gradient, named_parameters(plain[1])[name], units=300)


def count(jaxpr, found: Counter) -> Counter:
    """How often each kernel, and a matmul, is there, at any depth; both sides of a choice by platform count."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        found[equation.params["name"] if name == "pallas_call" else name] += 1
        if name != "pallas_call":
            for inner in core.jaxprs_in_params(equation.params):
                count(inner, found)
    return found


def program(policy: str, **changes) -> Counter:
    """Of the gradients of a model whose layers have kernels for all they do."""
    model, ids = models.build(num_layers=2, remat=policy, compute_dtype=jnp.bfloat16, **changes), models.ids()
    parameters, static = eqx.partition(model, eqx.is_array)
    with compile_for("sm_90"):
        loss = lambda parameters: eqx.combine(parameters, static).compute_loss(ids, ids)  # noqa: E731
        traced = jax.jit(jax.grad(loss)).trace(parameters)
    live, _ = partial_eval.dce_jaxpr(traced.jaxpr.jaxpr, [True] * len(traced.jaxpr.jaxpr.outvars))
    return count(live, Counter())


def test_what_runs_again():
    none, kernels, block = map(program, ("none", "kernels", "block"))
    for name in FORWARD:
        final = name == "timestep_norm_forward"  # behind the last block
        assert kernels[name] == none[name] > 0
        assert block[name] == 2 * none[name] - final
    assert none["dot_general"] < kernels["dot_general"]


def test_fused_matmuls_run_again_and_weights_are_rounded_again():
    none, kernels, block = (program(policy, gemm_backend="fused") for policy in ("none", "kernels", "block"))
    assert none["round_weights"] == 2  # once in each block
    for again in (kernels, block):
        assert again["round_weights"] == 4
        assert again["fused_linear_forward"] > none["fused_linear_forward"]
    for name in FORWARD:
        assert kernels[name] == none[name]
