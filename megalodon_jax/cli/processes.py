"""Options of a command that is one of several processes, and what makes them one run."""

import argparse
import contextlib
import io
from contextlib import AbstractContextManager

import jax

from megalodon_jax.cli.errors import CommandError


def add_processes(parser: argparse.ArgumentParser) -> None:
    """--coordinator, --processes and --process, or --distributed."""
    group = parser.add_argument_group("several processes", "each is started with the same config")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0 on")
    group.add_argument(
        "--distributed", action="store_true", help="a cluster that jax knows, such as Slurm's, says all of that"
    )


def connect(options: argparse.Namespace) -> None:
    """Wait for the other processes, if there are others. Before anything is computed.

    Raises:
        CommandError: options that do not belong together, or the others did not come.
    """
    given = (options.coordinator, options.processes, options.process)
    if given == (None, None, None) and not options.distributed:
        return
    if options.distributed != (given == (None, None, None)) or (not options.distributed and None in given):
        raise CommandError("give all of --coordinator, --processes and --process, or --distributed alone")
    if not options.distributed:
        host, _, port = options.coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise CommandError(f"--coordinator must be HOST:PORT, such as 10.0.0.1:1234, got {options.coordinator}")
        if not 0 <= options.process < options.processes:
            raise CommandError(
                f"--process must be from 0 up to, not including, --processes, got {options.process} of "
                f"{options.processes}"
            )
    try:
        jax.distributed.initialize(*given)
    except (RuntimeError, ValueError) as error:
        others = "; give --coordinator, --processes and --process instead" if options.distributed else ""
        raise CommandError(f"the processes did not find each other: {error}{others}") from error


def prints_once() -> AbstractContextManager:
    """What is printed inside the block is what the first process prints."""
    return contextlib.nullcontext() if jax.process_index() == 0 else contextlib.redirect_stdout(io.StringIO())
