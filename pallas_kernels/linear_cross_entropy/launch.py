"""linear_cross_entropy by kernels: what they read and write, and what XLA does between them."""

from functools import partial

import jax
import jax.numpy as jnp

import reference
from pallas_kernels._autodiff import no_derivative
from pallas_kernels._backends import triton as backend
from pallas_kernels._call import Call
from pallas_kernels._products import splits
from pallas_kernels._tiles import Plan
from pallas_kernels.linear_cross_entropy import triton
from pallas_kernels.linear_cross_entropy.math import joined
from pallas_kernels.linear_cross_entropy.problem import Problem

FORWARD, DHIDDEN, DWEIGHT = (f"linear_cross_entropy_{kernel}" for kernel in ("forward", "dhidden", "dweight"))

S = jax.ShapeDtypeStruct

_guarded = partial(
    no_derivative,
    "linear_cross_entropy: its results have no derivatives: gradients are among them. Multiply those by the cotangent "
    "of the losses' sum in the rules of a custom_vjp.",
)


def linear_cross_entropy(plan: Plan, hidden, weight, targets, factors, *, so_far=None):
    """linear_cross_entropy by Triton kernels; arguments as in the public op."""
    (tokens, features), vocabulary = hidden.shape, weight.shape[0]
    problem = Problem(tokens, features, vocabulary, plan[FORWARD].block_n)
    return _compiled(Call(plan, problem), hidden, weight, targets, factors, so_far)


def by_xla(hidden, weight, targets, factors, *, so_far=None):
    """The reference; arguments as in the public op."""

    def plain(hidden, weight, targets, factors, so_far):
        return reference.linear_cross_entropy(hidden, weight, targets, factors, so_far=so_far)

    return _guarded(plain)(hidden, weight, targets, factors, so_far)


def _everywhere(call: Call[Problem], *arrays):
    return _guarded(partial(call.by_platform, _by_kernel, _by_reference))(*arrays)


_compiled = jax.jit(_everywhere, static_argnums=(0,))  # so that eager calls are traced once


def _by_reference(call: Call[Problem], hidden, weight, targets, factors, so_far):
    return reference.linear_cross_entropy(hidden, weight, targets, factors, so_far=so_far)


def _by_kernel(call: Call[Problem], hidden, weight, targets, factors, so_far):
    plan, problem, dtype = call.plan, call.problem, hidden.dtype
    tokens, features, vocabulary = problem.tokens, problem.features, problem.vocabulary
    run = partial(_launch, plan, problem)

    grid = (-(-tokens // plan[FORWARD].block_m), -(-vocabulary // plan[FORWARD].block_n))
    inputs = {"hidden": hidden, "weight": weight, "targets": targets, "factors": factors}
    part, row = S((grid[1], tokens), jnp.float32), S((tokens,), jnp.float32)
    outputs = {"e": S((tokens, vocabulary), dtype), "tops": part, "sums": part, "picked": row}
    found = run(triton.forward, FORWARD, grid, inputs, outputs)
    losses, softmax = joined(found.tops, found.sums, found.picked, factors, targets)

    logits = {"e": found.e, "tops": found.tops, **softmax._asdict()}
    tiles, (count, _) = plan[DHIDDEN], splits(vocabulary, plan[DHIDDEN])
    grid = (-(-features // tiles.block_n), -(-tokens // tiles.block_m), count)
    outputs = {"dhidden": S((count, tokens, features), jnp.float32 if count > 1 else dtype)}
    dhidden = run(triton.dhidden, DHIDDEN, grid, logits | {"weight": weight}, outputs).dhidden
    dhidden = dhidden[0] if count == 1 else jnp.sum(dhidden, axis=0).astype(dtype)

    tiles = plan[DWEIGHT]
    grid = (-(-features // tiles.block_n), -(-vocabulary // tiles.block_m))
    inputs = logits | {"hidden": hidden, "so_far": so_far}
    outputs = {"dweight": S((vocabulary, features), jnp.float32)}
    aliases = {} if so_far is None else {"dweight": "so_far"}  # a loop that carries the sum then copies nothing
    return losses, dhidden, run(triton.dweight, DWEIGHT, grid, inputs, outputs, aliases=aliases).dweight


def _launch(plan: Plan, problem: Problem, kernel, name: str, grid, inputs, outputs, aliases=None):
    run = partial(kernel, problem=problem, tiles=plan[name], dot=backend.matrix_product(plan, None))
    return backend.launch(run, name, grid, inputs, outputs, plan[name], plan, aliases=aliases or {})
