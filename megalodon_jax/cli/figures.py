"""Loss curves as PNG files."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from megalodon_jax.atomic import replacing
from megalodon_jax.cli.loop import Progress


def save_loss_curve(history: Sequence[Progress], baselines: dict[str, float], file: Path) -> None:
    """Training and held-out bits per byte against bytes seen, and one horizontal line per baseline."""
    figure, axes = _axes()
    trained = [(record.bytes_seen, record.train) for record in history if record.train is not None]
    evaluated = [(record.bytes_seen, record.held_out) for record in history if record.held_out is not None]
    axes.plot(*zip(*trained, strict=True), color="C0", alpha=0.4, label="train, per step")
    axes.plot(*zip(*evaluated, strict=True), "o-", color="C1", label="held out")
    for index, (name, bits) in enumerate(baselines.items()):
        axes.axhline(bits, linestyle="--", color=f"C{2 + index}", label=f"{name}, held out ({bits:.2f})")
    axes.set(xlabel="bytes seen", ylabel="bits per byte", ylim=(0, None))
    _save(figure, axes, file)


def save_loss_curves(
    runs: Mapping[str, Sequence[dict[str, Any]]],
    file: Path,
    baselines: Mapping[str, float] | None = None,
    top: float | None = None,
    styles: Mapping[str, dict[str, Any]] | None = None,
) -> None:
    """Bits per token of runs by name, from the records of their metrics: validation with dots, training thin.

    `baselines` are horizontal lines; what is above `top` is not shown; `styles` has line properties of runs, which
    otherwise have a colour each.
    """
    figure, axes = _axes()
    for index, (name, records) in enumerate(runs.items()):
        style = (styles or {}).get(name, {"color": f"C{index}"})
        trained, evaluated = (
            [(record["step"], record[key]) for record in records if record.get(key) is not None]
            for key in ("train_bits", "validation_bits")
        )
        if trained:
            axes.plot(*zip(*trained, strict=True), **style, alpha=0.4, linewidth=0.7)
        if evaluated:
            last = f"{name}, validation ({evaluated[-1][1]:.3f})"
            axes.plot(*zip(*evaluated, strict=True), marker=".", **style, label=last)
        else:
            axes.plot([], [], **style, alpha=0.4, linewidth=0.7, label=f"{name}, train")
    for name, bits in (baselines or {}).items():
        axes.axhline(bits, linestyle="--", color="black", linewidth=0.7)
        axes.annotate(f"{name} ({bits:.2f})", (1, bits), xycoords=("axes fraction", "data"), ha="right", va="bottom")
    axes.set(xlabel="step", ylabel="bits per token (of bytes: per byte)")
    axes.set_ylim(top=top)
    _save(figure, axes, file)


def _axes() -> tuple[Figure, Axes]:
    # The first use on a machine builds a font cache and says so as a warning.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Figure, axes: Axes, file: Path) -> None:
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(file) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)
