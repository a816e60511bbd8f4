"""`train`: train a byte model on a file."""

import argparse
from pathlib import Path

from megalodon_jax.checkpoint import CONFIG, WEIGHTS, holds_checkpoint
from megalodon_jax.cli import arguments, defaults
from megalodon_jax.cli.data import load_corpus
from megalodon_jax.cli.errors import CommandError, bad_input, require_extra_train
from megalodon_jax.config import MegalodonConfig


def add_parser(subcommands) -> None:
    """Declare the subcommand."""
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "train", help="train a byte model", description="Train a byte model; save a checkpoint and the loss curve."
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the checkpoint and the curve"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is already in --out")
    parser.add_argument("--steps", type=arguments.positive_int, default=1000, help="updates (default: 1000)")
    parser.add_argument(
        "--batch-size", type=arguments.positive_int, default=defaults.BATCH_SIZE,
        help=f"windows per step (default: {defaults.BATCH_SIZE})",
    )  # fmt: skip
    parser.add_argument(
        "--sequence-length", type=arguments.window, default=defaults.SEQUENCE_LENGTH,
        help=f"bytes per window (default: {defaults.SEQUENCE_LENGTH})",
    )  # fmt: skip
    parser.add_argument(
        "--learning-rate", type=arguments.positive_float, default=defaults.LEARNING_RATE,
        help=f"peak rate (default: {defaults.LEARNING_RATE})",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="MegalodonConfig as JSON (default: the model of the demo)"
    )
    arguments.add_data(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Train and say where everything is.

    Raises:
        CommandError: bad input.
    """
    require_extra_train()
    from megalodon_jax.cli import loop, run

    config = defaults.MODEL if options.config is None else _read_config(options.config)
    if holds_checkpoint(options.out) and not options.overwrite:
        raise CommandError(f"--out {options.out} already holds a checkpoint; choose another folder or add --overwrite")
    corpus = load_corpus(options.data, options.sequence_length)
    with bad_input():
        model = defaults.initial_model(config, options.seed)
    run.prepare(options.out)
    settings = loop.Options(
        options.batch_size, options.sequence_length, options.learning_rate, steps=options.steps, seed=options.seed
    )
    history, _ = run.run(model, corpus, settings, options.out)
    print(f"held out {history[0].held_out:.3f} -> {history[-1].held_out:.3f} bits/byte after {options.steps} steps")
    print("\n".join(f"wrote {options.out / name}" for name in (WEIGHTS, CONFIG, run.CURVE)))


def _read_config(path: Path) -> MegalodonConfig:
    try:
        with bad_input():
            config = MegalodonConfig.from_json(path.read_text(encoding="utf-8"))
    except (CommandError, TypeError) as error:
        raise CommandError(f"--config {path}: {error}") from error
    if (config.vocab_size, config.effective_output_size) != (defaults.VOCABULARY, defaults.VOCABULARY):
        raise CommandError(
            f"--config {path}: vocab_size is {config.vocab_size} and output_size {config.output_size}; "
            f"the tokens are bytes, set vocab_size to {defaults.VOCABULARY} and output_size to -1"
        )
    return config
