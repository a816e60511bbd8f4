"""`generate`: stream text from a checkpoint."""

import argparse
from pathlib import Path

from megalodon_jax.checkpoint import load_checkpoint
from megalodon_jax.cli import arguments, defaults, sampling
from megalodon_jax.cli.errors import CommandError, bad_input

SEPARATOR = "---------------"


def add_parser(subcommands) -> None:
    """Declare the subcommand."""
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "generate", help="stream text from a checkpoint", description="Stream text from the checkpoint of a byte model."
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="RUN/final of train, or folder of demo")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="text to continue (default: a newline)")
    parser.add_argument("--tokens", type=arguments.positive_int, default=256, help="bytes to draw (default: 256)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 for the likeliest byte (default: 0.8)")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest bytes only")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest bytes that hold mass P only")
    parser.add_argument("--min-p", type=float, metavar="P", help="of bytes at least P times as likely as the likeliest")
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write each byte as soon as it is drawn (the default), or all at the end",
    )
    parser.add_argument("--seed", type=arguments.seed, default=0, help="same seed, same text (default: 0)")
    parser.add_argument(
        "--samples", type=arguments.positive_int, default=1, metavar="N", help="texts, of the seeds SEED, SEED + 1, ..."
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the prompt and what follows it to stdout.

    Raises:
        CommandError: no such checkpoint, a checkpoint that is not of a byte model, or a sampling option out of range.
    """
    with bad_input():
        model = load_checkpoint(options.checkpoint)
    config = model.config
    if (config.vocab_size, config.effective_output_size) != (defaults.VOCABULARY, defaults.VOCABULARY):
        raise CommandError(
            f"{options.checkpoint} has {config.vocab_size} tokens and {config.effective_output_size} outputs; "
            f"generate reads byte models, which have {defaults.VOCABULARY} of each"
        )
    prompt = options.prompt.encode(errors="surrogateescape")
    drawing = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    draw = sampling.stream_bytes if options.stream else sampling.draw_bytes
    for number in range(options.samples):
        if number:
            print(SEPARATOR)
        with bad_input():  # the first draw checks the options
            text = sampling.decoded(draw(model, prompt, options.tokens, options.seed + number, **drawing))
            first = next(text)
        print(options.prompt, first, sep="", end="", flush=True)
        for piece in text:
            print(piece, end="", flush=True)
        print()
