"""`plot`: loss curves of runs in one picture."""

import argparse
from pathlib import Path

from megalodon_jax.cli.arguments import output_picture
from megalodon_jax.cli.errors import CommandError, bad_input, require_extra_train


def add_parser(subcommands) -> None:
    """Declare the subcommand."""
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "plot", help="draw the loss curves of runs", description="Draw the loss curves of runs into one PNG file."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder that train wrote")
    parser.add_argument(
        "--out", type=output_picture, required=True, metavar="FILE.png", help="file to write, replaced if there"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the picture.

    Raises:
        CommandError: a folder without metrics, or metrics without losses; a file that cannot be written.
    """
    require_extra_train()
    from megalodon_jax.cli.figures import save_loss_curves
    from megalodon_jax.training.folder import METRICS
    from megalodon_jax.training.metrics import read_metrics

    curves = {}
    for folder in options.runs:
        if not (folder / METRICS).is_file():
            raise CommandError(f"{folder} has no {METRICS}; give folders that train wrote")
        with bad_input():
            curves[str(folder)] = read_metrics(folder / METRICS)
        if not any("train_bits" in record or "validation_bits" in record for record in curves[str(folder)]):
            raise CommandError(f"{folder / METRICS} has no losses yet")
    with bad_input():
        save_loss_curves(curves, options.out)
    print(f"wrote {options.out}")
