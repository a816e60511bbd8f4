"""`python -m bench gpu` and `python -m bench compare`: their options, and what they ask for."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

from bench import ops, problems, report
from bench.gpu import compare, suite_model, suite_ops, suite_parity
from bench.gpu import report as markdown
from bench.gpu.device import NoDevice
from bench.gpu.session import ROUNDS, Session, begin
from bench.modes import MODES
from megalodon_jax.cli.arguments import positive_int, seed

NO_DEVICE = 3  # exit code
SUITES = ("ops", *suite_model.SUITES, "parity")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare those of `gpu`."""
    parser.add_argument(
        "--suite",
        choices=SUITES,
        default="ops",
        help="ops: kernels, XLA and the usual formulations of every op (the default); model: every program of a whole "
        "model; training, inference: those of it; parity: errors of the kernels on the problems of the tests",
    )
    parser.add_argument(
        "--spec",
        nargs="+",
        metavar="NAME",
        help='only these problems: "complex_ema: headline", "7B" of every op that has it, "fused_linear" for all of an '
        f"op's (its xla is cuBLAS); or models: {', '.join(map(repr, suite_model.SHAPES))}",
    )
    parser.add_argument("--mode", nargs="+", choices=MODES, metavar="MODE", help=f"ops: of {', '.join(MODES)}")
    parser.add_argument("--lengths", nargs="+", type=positive_int, metavar="L", help="each problem at these lengths")
    parser.add_argument("--rounds", type=positive_int, metavar="R", help=f"interleaved rounds (default: {ROUNDS})")
    parser.add_argument("--seed", type=seed, metavar="N", help="of the inputs (default: a new one; for parity 0)")
    parser.add_argument(
        "--device", choices=("gpu", "cpu"), default="gpu", help="cpu: try the command out on tiny problems"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write record.json, report.md and pictures here")


def add_compare_options(parser: argparse.ArgumentParser) -> None:
    """Declare those of `compare`."""
    for name in ("A", "B"):
        parser.add_argument(
            name.lower(), type=Path, metavar=name, help="a folder of `bench gpu --out`, or the record.json in it"
        )


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Measure; bad input is for `parser` to report. Exits with 1 where parity failed, NO_DEVICE where no GPU is."""
    try:
        check(options)
        if options.out is not None:
            prepare(options.out)
        record = _record(options, begin(options.device, options.rounds, options.seed))
    except NoDevice as error:
        print(f"bench gpu: {error}", file=sys.stderr)
        sys.exit(NO_DEVICE)
    except ValueError as error:
        parser.error(str(error))
    print(markdown.text(record))
    if options.out is not None:
        write(record, options.out)
    if not all(entry["passed"] for entry in record["parity"]):
        parser.exit(1, "parity failed\n")


def run_compare(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Print the comparison; bad input is for `parser` to report."""
    try:
        print(compare.text(compare.read(options.a), compare.read(options.b)))
    except ValueError as error:
        parser.error(str(error))


def check(options: argparse.Namespace) -> None:
    """Refuse what the suite does not take.

    Raises:
        ValueError: such an option is there.
    """
    whole, suite = options.suite in suite_model.SUITES, f"--suite {options.suite}"
    for name in {"ops": (), "parity": ("mode", "lengths", "rounds")}.get(options.suite, ("mode",)):
        if getattr(options, name):
            raise ValueError(f"--{name} is not for {suite}")
    if whole and options.device == "cpu" and options.spec:
        raise ValueError(f"--spec is not for {suite} --device cpu, which knows one tiny model")


def prepare(folder: Path, what: str = "--out") -> None:
    """Make the folder of `what`, before anything is measured for it.

    Raises:
        ValueError: it cannot be made or written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{what}: expected a folder to write into, got {str(folder)!r}: {reason}") from error


def write(record: dict, folder: Path) -> None:
    """The record, the report and, where matplotlib is installed, the pictures."""
    report.write_json(record, folder / compare.RECORD)
    report.write_text(markdown.text(record), folder / "report.md")
    if find_spec("matplotlib") is None:
        print('no pictures without matplotlib: pip install "megalodon-pallas[bench]"', file=sys.stderr)
        return
    from bench.gpu import plots

    plots.save(record, folder)


def _record(options: argparse.Namespace, session: Session) -> dict:
    tiny, lengths = session.kernel is None, options.lengths or ()
    if options.suite in suite_model.SUITES:
        shapes = {"tiny": suite_model.TINY} if tiny else suite_model.chosen(options.spec or suite_model.NAMES)
        return suite_model.run(options.suite, suite_model.at_lengths(shapes, lengths), session)
    if options.suite == "parity":
        where = "--suite parity has the problems of the tests alone"
        specs = problems.chosen(ops.PARITY, options.spec, where) if options.spec else ops.PARITY
        return suite_parity.run(specs, session)
    known, names = (ops.PARITY, suite_ops.TINY) if tiny else (ops.PRESETS, suite_ops.NAMES)
    where = "--device cpu has the tiny problems of the tests alone" if tiny else ""
    specs = problems.chosen(known, options.spec or names, where)
    return suite_ops.run(suite_ops.at_lengths(specs, lengths), session, options.mode or ())
