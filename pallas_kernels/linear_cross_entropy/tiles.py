"""Tiles of the kernels of linear_cross_entropy: the heuristic, and when a problem is too large.

The gradients make their tile of dz anew for each block of features, in as many instructions as an H100's tensor cores
take time for 128 features: there, and on what is faster, blocks are wider. So few programs then form the gradient of
`hidden` that the vocabulary is split between several, each with a copy in float32.
"""

from pallas_kernels._architecture import Architecture
from pallas_kernels._products import SMALLEST, crowded, filling, product_tiles
from pallas_kernels._tiles import Launch, LinearTiles
from pallas_kernels._tuning import choose
from pallas_kernels.linear_cross_entropy.launch import DHIDDEN, DWEIGHT, FORWARD

_T = LinearTiles  # block_m, block_n, block_k, num_warps, num_stages
_WIDE = {  # where no load is masked
    DHIDDEN: {"sm_90": _T(128, 256, 64, 8, 3), "sm_100": _T(128, 256, 64, 8, 3)},
    DWEIGHT: {"sm_90": _T(128, 256, 64, 8, 3), "sm_100": _T(64, 256, 64, 8, 3)},
}


def refuse(hidden, weight, *args, **kwargs) -> str | None:
    """Why no kernel takes this problem, or None."""
    tokens, vocabulary = hidden.shape[0], weight.shape[0]
    if tokens * vocabulary >= 2**31:
        return f"{tokens * vocabulary} logits are too many; at most 2^31 - 1 are numbered"
    return crowded(-(-max(tokens, vocabulary) // SMALLEST))


def launches(gpu: Architecture, hidden, weight, targets, factors, *, so_far=None) -> tuple[Launch, ...]:
    """Every kernel with its tiles."""
    (tokens, features), vocabulary = hidden.shape, weight.shape[0]
    shape = {"tokens": tokens, "features": features, "vocabulary": vocabulary, "dtype": hidden.dtype.name}
    sizes = {
        FORWARD: (tokens, vocabulary, features),
        DHIDDEN: (tokens, features, vocabulary),
        DWEIGHT: (vocabulary, features, tokens),
    }
    found = []
    for name, (m, n, k) in sizes.items():
        tiles = product_tiles(gpu, hidden.dtype, m, n, k, _WIDE.get(name, {}).get(gpu.name))
        tiles = filling(gpu, tiles, m, n) if name == DHIDDEN else tiles
        refused = lambda tiles, name=name, m=m, n=n: _refused(name, tiles, n if name == FORWARD else m)  # noqa: E731
        found.append(choose(name, gpu.name, shape, tiles, refused))
    return tuple(found)


def _refused(name: str, tiles: LinearTiles, size: int) -> str | None:
    if tiles.num_splits > 1 and name != DHIDDEN:
        return "its sums are not split"
    return crowded(-(-size // (tiles.block_n if name == FORWARD else tiles.block_m)))
