"""`python -m bench training`: its options, and which suite they ask for."""

import argparse
from importlib.util import find_spec
from pathlib import Path

from megalodon_jax.cli.arguments import positive_int
from megalodon_jax.cli.errors import CommandError, bad_input, require_extra_train

SUITES = ("parity", "comparison")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare them, all but --json."""
    parser.add_argument(
        "--suite",
        choices=SUITES,
        default="parity",
        help="parity: our training beside PyTorch's from the same weights, in float32 and float64 (the default); "
        "comparison: Megalodon and Llama on the same bytes from several seeds, and PyTorch beside one of the runs",
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="comparison: the text, plain or .gz")
    parser.add_argument(
        "--runs", type=Path, metavar="FOLDER", help="comparison: where the runs are; complete ones are not made again"
    )
    parser.add_argument("--seeds", type=positive_int, metavar="N", help="comparison: how many (default: 3)")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="comparison: draw the curves here")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="comparison: change every config, as in steps=20"
    )


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Run the suite that `options` ask for; bad input is for `parser` to report."""
    try:
        if find_spec("torch") is None:
            raise CommandError('torch is not installed; pip install "megalodon-pallas[torch]"')
        if options.suite == "parity":
            _parity(options)
        else:
            _comparison(options)
    except CommandError as error:
        parser.error(str(error))


def _parity(options: argparse.Namespace) -> None:
    if options.data or options.runs or options.seeds or options.out or options.set:
        raise CommandError("--suite parity takes no other option than --json")
    from bench.training import parity

    parity.run(options.json)


def _comparison(options: argparse.Namespace) -> None:
    if options.data is None or options.runs is None:
        raise CommandError("--suite comparison needs --data FILE and --runs FOLDER")
    require_extra_train()
    from bench.training import comparison

    with bad_input():
        request = comparison.Request(options.data, options.runs, options.seeds or comparison.SEEDS, options.set)
        request.config(comparison.TWIN, 0)
        comparison.run(request, options.out, options.json)
