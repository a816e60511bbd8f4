"""Pictures of records: panels of curves over the length, and of suite `ops` of `bench cpu`."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.programs import MODES

_PANEL = 3.2  # inches

Curves = dict[str, list[tuple[float, float]]]  # points by name


def panels(curves_of: dict[str, Curves], x: str, y: str, scale: Any) -> Figure | None:
    """Panels of curves by title, up to four in a row; None if there is none."""
    if not curves_of:
        return None
    columns = min(4, len(curves_of))
    rows = -(-len(curves_of) // columns)
    figure, axes = grid(rows, columns)
    for axis, (title, curves) in zip(axes, curves_of.items(), strict=False):
        for name, points in curves.items():
            axis.plot(*zip(*sorted(set(points)), strict=True), marker="o", label=name)
        axis.set(title=title, xlabel=x, ylabel=y, yscale=scale)
        axis.set_xscale("log", base=2)
        axis.legend(fontsize="small")
    for axis in axes[len(curves_of) :]:
        axis.remove()
    return figure


def grid(rows: int, columns: int, scale: float = 1.0):
    """A figure and its axes, row by row."""
    figure = Figure(figsize=(1.3 * scale * _PANEL * columns, scale * _PANEL * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def cpu_ops(record: dict, path: Path) -> None:
    """CPU time, error of y and temporary memory against the length, in both modes, as one PNG file."""
    found: dict[str, Curves] = {}
    for mode in MODES:
        for case in (case for case in record["cases"] if case["mode"] == mode):
            for name, one in case["programs"].items():
                figures = {
                    "CPU ms": one["median"]["total_ms"],
                    "relative RMS error of y": one["errors"]["y"]["relative_rms"],
                    "temporary MB": one["temp_bytes"] / 1e6,
                }
                for what, figure in figures.items():
                    found.setdefault(f"{mode}\n{what}", {}).setdefault(name, []).append((case["length"], figure))
    figure = panels(found, "L", "", "log")
    assert figure is not None
    figure.savefig(path, dpi=120)
