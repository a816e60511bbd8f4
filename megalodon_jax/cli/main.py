"""Arguments in, exit code out: 0 done, 2 bad input (one line on stderr), 130 interrupted, 143 terminated (`train`)."""

import argparse
import os
import sys
from collections.abc import Sequence

from megalodon_jax.cli import convert, demo, doctor, generate, plot, selftest, train
from megalodon_jax.cli.errors import CommandError
from pallas_kernels import KernelUnavailable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; `arguments` default to the process's own.

    Raises:
        SystemExit: argparse's own, after --help (0) or for arguments it does not understand (2).
    """
    parser = argparse.ArgumentParser(prog="python -m megalodon_jax", description="Megalodon language models in JAX.")
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (train, plot, generate, demo, convert, doctor, selftest):
        command.add_parser(subcommands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options) or 0
    except (CommandError, KernelUnavailable) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted{''.join(f'; {part}' for part in interrupt.args)}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output is gone; the interpreter's last flush must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
