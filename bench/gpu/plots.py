"""Pictures of a record: time and error against the length, and what part of the roofline is reached."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.pictures import Curves, grid, panels


def save(record: dict, folder: Path) -> list[Path]:
    """Write PNG files into a folder; of a kind that has nothing to show there is none."""
    pictures = {
        "time": panels(_times(record), "L", "ms", "log"),
        "error": panels(_errors(record), "L", "relative RMS error", "log"),
        "roofline": _roofline(record),
    }
    written = []
    for name, figure in pictures.items():
        if figure is not None:
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=120)
    return written


def _base(title: str) -> str:
    return title.partition(", L = ")[0]


def _times(record: dict) -> dict[str, Curves]:
    found: defaultdict[str, defaultdict] = defaultdict(lambda: defaultdict(list))
    for case in record["cases"]:
        for name, one in case["implementations"].items():
            found[f"{_base(case['title'])}\n{case['mode']}"][name].append((case["length"], one["ms"]))
    return _of_several(found)


def _errors(record: dict) -> dict[str, Curves]:
    """Of each problem the output or gradient that is worst for either side, at the length that the oracle did."""
    found: defaultdict[str, defaultdict] = defaultdict(lambda: defaultdict(list))
    for entry in filter(lambda entry: entry["lines"], record["parity"]):
        for which in ("kernel", "reference"):
            worst = max(line[which]["relative_rms"] for line in entry["lines"])
            found[_base(entry["title"])][which].append((entry["length"], worst))
    return _of_several(found)


def _of_several(found: dict[str, Any]) -> dict[str, Curves]:
    lengths = lambda curves: {length for points in curves.values() for length, _ in points}  # noqa: E731
    return {title: curves for title, curves in found.items() if len(lengths(curves)) > 1}


def _roofline(record: dict) -> Figure | None:
    """Operations per second over operations for each byte, under the roof; problems without products over bytes."""
    if not record["cases"]:
        return None
    figure, (left, right) = grid(1, 2, scale=1.6)
    roof = record["roofline"]
    places = [10.0 ** (step / 50) for step in range(201)]
    for dtype in ("bfloat16", "float32"):
        left.plot(places, [min(roof[dtype], roof["bandwidth"] * place) for place in places], label=f"roof, {dtype}")
    _scatter(left, record, lambda case, one: (case["operations"] / one["bytes"], one["operations_per_second"]))
    left.set(xlabel="operations / byte", ylabel="operations / s", xscale="log", yscale="log")
    right.axhline(roof["bandwidth"], color="tab:gray")
    _scatter(right, record, lambda case, one: (one["bytes"], one["bytes_per_second"]), products=False)
    right.set(xlabel="bytes", ylabel="bytes / s", xscale="log", yscale="log")
    for axis in (left, right):
        axis.legend(fontsize="x-small")
    return figure


def _scatter(axis, record: dict, point: Callable[[dict, dict], tuple[float, float]], *, products: bool = True) -> None:
    points: Curves = defaultdict(list)
    for case in record["cases"]:
        if bool(case["operations"]) == products:
            for name, one in case["implementations"].items():
                points[name].append(point(case, one))
    for name, found in points.items():
        axis.scatter(*zip(*found, strict=True), s=16, label=name)
