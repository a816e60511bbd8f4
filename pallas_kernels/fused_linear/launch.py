"""Launching the kernels of fused_linear: what they read and write."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels._backends import triton as backend
from pallas_kernels._products import splits
from pallas_kernels._tiles import Plan
from pallas_kernels.fused_linear import triton
from pallas_kernels.fused_linear.problem import Arrays, Asked, Problem, by_layer
from reference.fused_linear import Layer

FORWARD, DX, DW = (f"fused_linear_{kernel}" for kernel in ("forward", "dx", "dw"))

S = jax.ShapeDtypeStruct
Copies = tuple[jax.Array | None, ...]


def forward(plan: Plan, problem: Problem, arrays: Arrays, rounded: Copies) -> tuple[jax.Array, ...]:
    """y of each layer."""
    of_layers = {
        "weight": _rounded(arrays, rounded),
        "bias": [layer.bias for layer in arrays.layers],
        "residual": [_matrix(layer.residual) for layer in arrays.layers],
    }
    outputs = by_layer(y=[S((problem.tokens, size), arrays.x.dtype) for size in problem.outputs])
    done = _launch(triton.forward, FORWARD, plan, problem, _front(arrays) | by_layer(**of_layers), outputs)
    found = (getattr(done, name) for name in outputs)
    return tuple(y.reshape(*arrays.x.shape[:2], -1) for y in found)


def backward(
    plan: Plan, problem: Problem, arrays: Arrays, rounded: Copies, dys: tuple[jax.Array, ...], asked: Asked
) -> Arrays:
    """The gradients, without launches of which nobody asks for any; the residuals are not looked at."""
    front, dy = _front(arrays), by_layer(dy=[_matrix(dy) for dy in dys])
    found: dict[str, Any] = dict.fromkeys(front)
    gated = arrays.gate is not None
    if asked.front or (asked.layers and gated):
        inputs = front | dy | by_layer(weight=_rounded(arrays, rounded))
        found, a = _backward_of_front(plan, problem, inputs, arrays.x.shape)
        if gated:  # what dW takes the place of x in is known already
            front, problem = dict.fromkeys(front) | {"x": a}, replace(problem, activation=None)
    layers = arrays.layers
    if asked.layers:
        layers = _backward_of_layers(plan, problem, layers, front | dy)
    each = zip(layers, dys, problem.residual, strict=True)
    layers = tuple(layer._replace(residual=dy if residual else None) for layer, dy, residual in each)
    if asked.front and asked.layers:
        # Now and not later, so that what dW is made of need not be held while the backward goes on with dx.
        found["x"], layers = jax.lax.optimization_barrier((found["x"], layers))
    return asked.only(Arrays(layers=layers, **found))


def _backward_of_front(plan: Plan, problem: Problem, inputs, shape) -> tuple[dict[str, Any], Any]:
    """Gradients of what is in front of the products by name, and a [T, D] where there is a gate."""
    like, gated = S((problem.tokens, problem.features), inputs["x"].dtype), inputs["gate"] is not None
    biases = [name for name in ("x_bias", "gate_bias") if inputs[name] is not None]
    blocks = -(-problem.tokens // plan[DX].block_m)
    outputs = {
        "dx": like, "dgate": like if gated else None, "a": like if gated else None,
        "sums": S((blocks, len(biases), problem.features), jnp.float32) if biases else None,
    }  # fmt: skip
    done = _launch(triton.dx, DX, plan, problem, inputs, outputs)
    found = dict.fromkeys(("x", "x_bias", "gate", "gate_bias")) | {"x": done.dx.reshape(shape)}
    found |= {"gate": done.dgate.reshape(shape)} if gated else {}
    return found | (dict(zip(biases, jnp.sum(done.sums, axis=0), strict=True)) if biases else {}), done.a


def _backward_of_layers(plan: Plan, problem: Problem, layers: tuple[Layer, ...], inputs) -> tuple[Layer, ...]:
    """Gradients of weights and biases."""
    count, _ = splits(problem.tokens, plan[DW])
    weights = [layer.weight for layer in layers]
    outputs = by_layer(
        dw=[S((count, *w.shape), jnp.float32 if count > 1 else w.dtype) for w in weights],
        dbias=[None if layer.bias is None else S((count, layer.bias.size), jnp.float32) for layer in layers],
    )
    done = _launch(triton.dw, DW, plan, problem, inputs, outputs)

    def total(name: str, number: int, dtype) -> Any:
        found = getattr(done, f"{name}_{number}")
        return None if found is None else (found[0] if count == 1 else jnp.sum(found, axis=0)).astype(dtype)

    return tuple(
        layer._replace(weight=total("dw", number, layer.weight.dtype), bias=total("dbias", number, jnp.float32))
        for number, layer in enumerate(layers)
    )


def _front(arrays: Arrays) -> dict[str, jax.Array | None]:
    return {
        "x": _matrix(arrays.x), "x_bias": arrays.x_bias, "gate": _matrix(arrays.gate), "gate_bias": arrays.gate_bias,
    }  # fmt: skip


def _rounded(arrays: Arrays, rounded: Copies) -> list[jax.Array]:
    pairs = zip(arrays.layers, rounded, strict=True)
    return [layer.weight.astype(arrays.x.dtype) if copy is None else copy for layer, copy in pairs]


def _matrix(array):
    """[T, F] of [B, L, F]; None for None."""
    return None if array is None else array.reshape(-1, array.shape[-1])


def _launch(kernel, name: str, plan: Plan, problem: Problem, inputs, outputs):
    tiles = plan[name]
    of_tokens, of_features = -(-problem.tokens // tiles.block_m), -(-problem.features // tiles.block_n)
    grid = {
        FORWARD: (sum(problem.blocks(tiles.block_n)), of_tokens, 1),
        DX: (of_features, of_tokens, 1),
        DW: (of_features, sum(problem.blocks(tiles.block_m)), splits(problem.tokens, tiles)[0]),
    }[name]
    run = partial(kernel, problem=problem, tiles=tiles, dot=backend.matrix_product(plan, None))
    return backend.launch(run, name, grid, inputs, outputs, tiles, plan)
