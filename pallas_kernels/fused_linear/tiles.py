"""Tiles of the kernels of fused_linear: the heuristic, and when a problem is too large.

Where registers allow, two programs share a multiprocessor, so that one forms sums while the other ends. An activation
is made anew for each block of outputs, by two instructions of a slow unit (exp2 and a reciprocal), which on the H100
take twice as long as the tensor cores do with 128 outputs: there the forward's blocks are wider. Sums over tokens are
split where a GPU would be half empty: each split is a copy of the gradient, in float32.
"""

from dataclasses import replace

from pallas_kernels._architecture import Architecture
from pallas_kernels._products import FLOAT32, SMALLEST, crowded, filling, product_tiles
from pallas_kernels._tiles import LinearTiles
from pallas_kernels._tuning import choose
from pallas_kernels.fused_linear.launch import DW, DX, FORWARD
from reference.fused_linear import layers_of

_ACTIVATED = {"sm_90": LinearTiles(128, 256, 64, 8, 3)}  # forward, where no load is masked
_GATED = 64  # columns of dx, where registers hold tiles of x and the gate and of both their gradients at once


def refuse(x, weight, *args, **kwargs) -> str | None:
    """Why no kernel takes this problem, or None."""
    outputs = [layer.weight.shape[0] for layer in layers_of(weight)]
    elements = x.shape[0] * x.shape[1] * max(outputs)
    if elements >= 2**31:
        return f"a result of {elements} elements is too large; at most 2^31 - 1 are numbered"
    blocks = sum(-(-size // SMALLEST) for size in outputs)
    return crowded(-(-x.shape[0] * x.shape[1] // FLOAT32.block_m)) or crowded(blocks)


def launches(
    gpu: Architecture, x, weight, bias=None, *, x_bias=None, gate=None, gate_bias=None, residual=None, activation=None,
    rounded=None,
):  # fmt: skip
    """Every kernel with its tiles."""
    tokens, features = x.shape[0] * x.shape[1], x.shape[2]
    layers = layers_of(weight, bias, residual)
    sizes = [layer.weight.shape[0] for layer in layers]
    outputs, widest = sum(sizes), max(sizes)
    shape = {
        "tokens": tokens, "features": features, "outputs": "+".join(map(str, sizes)), "dtype": x.dtype.name,
        "activation": activation or "none", "x_bias": int(x_bias is not None), "gate": int(gate is not None),
        "residual": sum(layer.residual is not None for layer in layers),
    }  # fmt: skip
    found, activated = [], activation is not None or gate is not None
    sizes = {FORWARD: (tokens, widest, features), DX: (tokens, features, widest), DW: (widest, features, tokens)}
    for name, (m, n, k) in sizes.items():
        wide = _ACTIVATED.get(gpu.name) if name == FORWARD and activated else None
        tiles = product_tiles(gpu, x.dtype, m, n, k, wide)
        if name == DX and gate is not None and x.dtype.itemsize == 2:
            tiles = replace(tiles, block_n=min(tiles.block_n, _GATED))
        if name == DW:
            tiles = filling(gpu, tiles, outputs, n)
        refused = lambda tiles, rows=m: crowded(-(-rows // tiles.block_m))  # noqa: E731
        found.append(choose(name, gpu.name, shape, tiles, refused))
    return tuple(found)
