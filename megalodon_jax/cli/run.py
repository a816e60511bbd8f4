"""A training run with its side effects: progress on the terminal, checkpoints and the loss curve in a folder."""

import dataclasses
import os
from contextlib import closing
from pathlib import Path

from megalodon_jax.checkpoint import save_checkpoint
from megalodon_jax.cli import compressors, display, figures, loop
from megalodon_jax.cli.data import Corpus
from megalodon_jax.cli.errors import CommandError, bad_input
from megalodon_jax.model import MegalodonForCausalLM

CURVE = "loss_curve.png"


def prepare(out: Path) -> None:
    """Make the folder, before any time is spent on training.

    Raises:
        CommandError: it cannot be made or written.
    """
    with bad_input():
        out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise CommandError(f"--out {out} is not writable; choose another folder")


def run(
    model: MegalodonForCausalLM, corpus: Corpus, options: loop.Options, out: Path
) -> tuple[list[loop.Progress], dict[str, float]]:
    """Train, saving a checkpoint at every evaluation after a step and the loss curve at the end.

    Returns:
        All records (without models), and the baselines on the held-out bytes.

    Raises:
        CommandError: the loss is not finite, or `out` cannot be written.
        KeyboardInterrupt: with what was saved as its message.
    """
    baselines = compressors.baselines(corpus.held_out)
    history: list[loop.Progress] = []
    saved = "nothing was saved"
    try:
        with closing(loop.train(model, corpus, options)) as records, closing(display.show(records)) as shown:
            for record in shown:
                if record.model is not None and record.step > 0:
                    with bad_input():
                        save_checkpoint(record.model, out)
                    saved = f"the checkpoint of step {record.step} is in {out}"
                history.append(dataclasses.replace(record, model=None))
        with bad_input():
            figures.save_loss_curve(history, baselines, out / CURVE)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(saved) from None
    return history, baselines
