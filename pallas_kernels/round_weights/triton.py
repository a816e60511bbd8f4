"""The kernel of round_weights: each program rounds one block of one weight, taken as a row of numbers."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import reference
from pallas_kernels._architecture import Architecture
from pallas_kernels._backends import triton as backend
from pallas_kernels._backends.triton import pl
from pallas_kernels._call import Call
from pallas_kernels._tiles import ElementTiles, Launch, Plan
from pallas_kernels._tuning import choose

NAME = "round_weights"
_TILES = ElementTiles(block_size=2048, num_warps=4)  # 16 numbers of a thread


def refuse(*weights, dtype: Any = jnp.bfloat16) -> str | None:
    """No weights are too large: the first axis of a grid has room for them."""
    return None


def launches(gpu: Architecture, *weights, dtype: Any = jnp.bfloat16) -> tuple[Launch, ...]:
    """The kernel with its tiles."""
    shape = {"elements": sum(weight.size for weight in weights), "dtype": jnp.dtype(dtype).name}
    return (choose(NAME, gpu.name, shape, _TILES, lambda tiles: None),)


def round_weights(plan: Plan, *weights: jax.Array, dtype) -> tuple[jax.Array, ...]:
    """round_weights by a kernel; arguments as in the public op."""
    weights = tuple(map(lax.stop_gradient, weights))
    return Call(plan, jnp.dtype(dtype)).by_platform(_by_kernel, _by_reference, *weights)


def _by_reference(call: Call, *weights: jax.Array):
    return reference.round_weights(*weights, dtype=call.problem)


def _by_kernel(call: Call, *weights: jax.Array):
    tiles = call.plan[NAME]
    blocks = [-(-weight.size // tiles.block_size) for weight in weights]
    names = [str(number) for number in range(len(weights))]

    def kernel(refs: SimpleNamespace) -> None:
        program, first = pl.program_id(0), 0
        for name, weight, count in zip(names, weights, blocks, strict=True):
            mine = (program >= first) & (program < first + count)
            pl.when(mine)(lambda n=name, w=weight, b=program - first: _block(refs, n, w.size, b, tiles.block_size))
            first += count

    inputs = {f"in_{name}": weight.reshape(-1) for name, weight in zip(names, weights, strict=True)}
    outputs = {f"out_{n}": jax.ShapeDtypeStruct((w.size,), call.problem) for n, w in zip(names, weights, strict=True)}
    done = backend.launch(kernel, NAME, (sum(blocks),), inputs, outputs, tiles, call.plan)
    return tuple(getattr(done, f"out_{n}").reshape(w.shape) for n, w in zip(names, weights, strict=True))


def _block(refs: SimpleNamespace, name: str, size: int, number, length: int) -> None:
    index = number * length + jnp.arange(length, dtype=jnp.int32)
    mask = None if size % length == 0 else index < size
    backend.store(getattr(refs, f"out_{name}"), index, backend.load(getattr(refs, f"in_{name}"), index, mask), mask)
