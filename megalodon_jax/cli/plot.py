"""Loss curve of a run as a PNG file."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from megalodon_jax.cli.loop import Progress


def save_loss_curve(history: Sequence[Progress], baselines: dict[str, float], file: Path) -> None:
    """Training and held-out bits per byte against bytes seen, and one horizontal line per baseline."""
    # The first use on a machine builds a font cache and says so as a warning.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    trained = [(record.bytes_seen, record.train) for record in history if record.train is not None]
    evaluated = [(record.bytes_seen, record.held_out) for record in history if record.held_out is not None]
    axes.plot(*zip(*trained, strict=True), color="C0", alpha=0.4, label="train, per step")
    axes.plot(*zip(*evaluated, strict=True), "o-", color="C1", label="held out")
    for index, (name, bits) in enumerate(baselines.items()):
        axes.axhline(bits, linestyle="--", color=f"C{2 + index}", label=f"{name}, held out ({bits:.2f})")
    axes.set(xlabel="bytes seen", ylabel="bits per byte", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    unfinished = file.with_name(file.name + ".tmp")
    figure.savefig(unfinished, format="png", dpi=120)
    os.replace(unfinished, file)
