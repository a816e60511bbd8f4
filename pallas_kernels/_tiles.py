"""What a kernel is launched with: its tile shape, and the plan made once at op entry."""

from dataclasses import dataclass
from typing import Any

GRID_AXIS = 65535  # programs


def next_power_of_two(number: int) -> int:
    """The least power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True)
class Tiles:
    """Launch shape of one kernel.

    Attributes:
        block_length: tokens per tile, a power of two.
        num_chunks: programs that share a sequence; 1 means one pass over it.
        num_warps: warps per program, a power of two.
    """

    block_length: int
    num_chunks: int
    num_warps: int

    num_stages = 1

    def __post_init__(self):
        _powers_of_two(self, "block_length", "num_warps")
        _positive(self, "num_chunks")

    def __str__(self) -> str:
        counts = ((self.block_length, "token"), (self.num_chunks, "chunk"), (self.num_warps, "warp"))
        return ", ".join(f"{count} {what}{'s' * (count > 1)}" for count, what in counts)


@dataclass(frozen=True)
class AttentionTiles:
    """Launch shape of one attention kernel.

    Attributes:
        block_q, block_k: queries and keys of a tile of scores, powers of two, at least 16.
        block_v: value features that a program works on at a time, a power of two, at least 16.
        block_d: query and key features of one product, a power of two, at least 16.
        num_warps: warps per program, a power of two.
        num_stages: tiles of keys and values that are loaded ahead, the present one included.
    """

    block_q: int
    block_k: int
    block_v: int
    block_d: int
    num_warps: int
    num_stages: int

    def __post_init__(self):
        blocks = ("block_q", "block_k", "block_v", "block_d")
        _powers_of_two(self, *blocks, "num_warps")
        _at_least_16(self, *blocks)
        _positive(self, "num_stages")

    def __str__(self) -> str:
        return (
            f"{self.block_q} queries x {self.block_k} keys, {self.block_v} value and {self.block_d} key features, "
            f"{self.num_warps} warps, {self.num_stages} stages"
        )


@dataclass(frozen=True)
class LinearTiles:
    """Launch shape of one kernel of a linear layer or an output head.

    Attributes:
        block_m, block_n: rows and columns of the product that a program forms, powers of two, at least 16.
        block_k: terms of its sums that are loaded at a time, a power of two, at least 16.
        num_warps: warps per program, a power of two.
        num_stages: tiles of both operands that are loaded ahead, the present ones included.
        num_splits: programs that share a sum over all tokens, or over a vocabulary; one where there is no such sum.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    num_splits: int = 1

    def __post_init__(self):
        blocks = ("block_m", "block_n", "block_k")
        _powers_of_two(self, *blocks, "num_warps")
        _at_least_16(self, *blocks)
        _positive(self, "num_stages")
        _positive(self, "num_splits")

    def __str__(self) -> str:
        splits = f", {self.num_splits} splits" if self.num_splits > 1 else ""
        return (
            f"{self.block_m} x {self.block_n}, {self.block_k} terms, {self.num_warps} warps, "
            f"{self.num_stages} stages{splits}"
        )


@dataclass(frozen=True)
class ElementTiles:
    """Launch shape of one kernel that does the same to every number of its arrays.

    Attributes:
        block_size: numbers of a program, a power of two.
        num_warps: warps per program, a power of two.
    """

    block_size: int
    num_warps: int

    num_stages = 1

    def __post_init__(self):
        _powers_of_two(self, "block_size", "num_warps")

    def __str__(self) -> str:
        return f"{self.block_size} numbers, {self.num_warps} warp{'s' * (self.num_warps > 1)}"


def too_many(what: str, count: int) -> str | None:
    """Why a grid has no room for that many programs along an axis (but the first, which has room for 2^31), or None."""
    return f"{what} {count} does not fit a grid axis; at most {GRID_AXIS} do" if count > GRID_AXIS else None


def at_most(longest: int):
    """For `choose`: refuses tiles of more than that many tokens, and more chunks than a grid has room for."""

    def refuse(tiles: Tiles) -> str | None:
        length = tiles.block_length
        if length > longest:
            return f"tiles of {length} tokens are too long here; at most {longest}"
        return too_many("a number of chunks of", tiles.num_chunks)

    return refuse


def _powers_of_two(tiles, *fields: str) -> None:
    for field in fields:
        value = getattr(tiles, field)
        if type(value) is not int or value < 1 or value & (value - 1):
            raise ValueError(f"{type(tiles).__name__}: {field} must be a power of two, got {value!r}.")
    if tiles.num_warps > 16:
        raise ValueError(f"{type(tiles).__name__}: num_warps must be at most 16, got {tiles.num_warps}.")


def _at_least_16(tiles, *fields: str) -> None:
    for field in fields:
        if getattr(tiles, field) < 16:
            raise ValueError(f"{type(tiles).__name__}: {field} must be at least 16, got {getattr(tiles, field)}.")


def _positive(tiles, field: str) -> None:
    value = getattr(tiles, field)
    if type(value) is not int or value < 1:
        raise ValueError(f"{type(tiles).__name__}: {field} must be a positive int, got {value!r}.")


AnyTiles = Tiles | AttentionTiles | LinearTiles | ElementTiles

# What each kernel is launched with.
KERNELS: dict[str, type[AnyTiles]] = {
    "complex_ema_forward": Tiles,
    "complex_ema_backward": Tiles,
    "timestep_norm_forward": Tiles,
    "timestep_norm_backward": Tiles,
    "chunked_attention_forward": AttentionTiles,
    "chunked_attention_gate": AttentionTiles,
    "chunked_attention_dq": AttentionTiles,
    "chunked_attention_dk": AttentionTiles,
    "chunked_attention_dv": AttentionTiles,
    "normalized_rotary_forward": Tiles,
    "normalized_rotary_backward": Tiles,
    "fused_linear_forward": LinearTiles,
    "fused_linear_dx": LinearTiles,
    "fused_linear_dw": LinearTiles,
    "feature_norm_forward": Tiles,
    "feature_norm_backward": Tiles,
    "round_weights": ElementTiles,
    "linear_cross_entropy_forward": LinearTiles,
    "linear_cross_entropy_dhidden": LinearTiles,
    "linear_cross_entropy_dweight": LinearTiles,
}


@dataclass(frozen=True)
class Launch:
    """One kernel of an implementation: its tiles, and whether an override, the tuning cache or the heuristic chose.

    Attributes:
        kernel: its name.
        tiles: of the type that `KERNELS` says.
        source: "override", "tuning cache" or "heuristic".
        target, shape: architecture, sizes and options, by which the tuning cache knows the launch.
    """

    kernel: str
    tiles: Any
    source: str
    target: str
    shape: tuple[tuple[str, int | str], ...]

    def __str__(self) -> str:
        return f"{self.kernel}: {self.tiles} ({self.source})"


@dataclass(frozen=True)
class Plan:
    """Everything decided at op entry; a static argument of the forward and of the backward alike.

    Attributes:
        interpret: run by Pallas' interpreter instead of being compiled.
        target: the architecture named by `compile_for`, None for the device at hand.
        portable: leave the last word to the platform the program is lowered for: kernel on CUDA, reference elsewhere.
        tiles: one entry per kernel of the op, by name.
    """

    interpret: bool
    target: str | None
    portable: bool
    tiles: tuple[tuple[str, AnyTiles], ...]

    def __getitem__(self, kernel: str) -> Any:
        return dict(self.tiles)[kernel]
