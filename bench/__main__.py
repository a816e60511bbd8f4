"""Command line of the benchmarks: `python -m bench cpu`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench import cpu_ops

_SUITES = {"ops": cpu_ops.run}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that `arguments` (default: the command line) ask for."""
    options = _parser().parse_args(arguments)
    _SUITES[options.suite](lengths=options.lengths, rounds=options.rounds, json_file=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Benchmarks against plain JAX formulations, side by side in one process."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    cpu = commands.add_parser("cpu", help="CPU time, accuracy, temporary memory and growth with the length, on CPU")
    cpu.add_argument(
        "--suite",
        choices=_SUITES,
        default="ops",
        help="ops: complex_ema against an FFT convolution and a lax.scan (the default)",
    )
    cpu.add_argument(
        "--lengths",
        nargs="+",
        type=_positive,
        default=cpu_ops.LENGTHS,
        metavar="L",
        help="sequence lengths (default: %(default)s)",
    )
    cpu.add_argument(
        "--rounds",
        type=_positive,
        default=cpu_ops.ROUNDS,
        metavar="R",
        help="interleaved rounds (default: %(default)s)",
    )
    cpu.add_argument("--json", type=_writable, metavar="FILE", help="write versions, samples, medians and errors here")
    return parser


def _positive(argument: str) -> int:
    number = int(argument) if argument.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {argument!r}")
    return number


def _writable(argument: str) -> Path:
    path = Path(argument)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in an existing folder, got {argument!r}")
    return path


if __name__ == "__main__":
    main()
