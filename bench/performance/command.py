"""`python -m bench report`: its options, and what they ask for."""

import argparse
import shlex
import sys

import jax

from bench import environment, ops
from bench.inspect import tools
from bench.inspect.targets import find_target
from bench.ops import Titled
from bench.performance import compiled, document, executed
from bench.problems import chosen
from bench.report import write_json, write_text
from megalodon_jax.cli.arguments import output_file, positive_int

TARGET = "sm_90"
NAMES = ("headline", "7B")
ROUNDS = 3


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare them; `--json` is added by who calls."""
    parser.add_argument(
        "--spec",
        nargs="+",
        metavar="NAME",
        help='only these problems, "complex_ema: 7B" or, of every op, "7B" (default: headline 7B)',
    )
    parser.add_argument(
        "--rounds",
        type=positive_int,
        default=ROUNDS,
        metavar="R",
        help=f"interleaved rounds on CPU (default: {ROUNDS})",
    )
    parser.add_argument(
        "--rows", type=positive_int, metavar="B", help="on CPU at most so many rows of a batch (default: all of them)"
    )
    parser.add_argument("--out", type=output_file, metavar="FILE.md", help="write the report here")


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Compile, measure, print; bad input is for `parser` to report. Exits with 1 where wheels are missing."""
    jax.config.update("jax_platforms", "cpu")
    try:
        specs = with_formulations(options.spec or NAMES)
    except ValueError as error:
        parser.error(str(error))
    if reason := tools.missing():
        sys.exit(reason)
    load = environment.load_average()
    record = {
        "versions": tools.versions() | environment.versions(),
        "machine": environment.machine() | {"memory_bytes": executed.memory()},
        "revision": environment.revision(),
        "command": asked(options),
        "names": list(options.spec or NAMES),
        "rounds": options.rounds,
        "rows": options.rows,
        "card": find_target(TARGET).card,
        "compiled": compiled.measure(specs, TARGET),
        "executed": executed.measure(specs, options.rounds, options.rows),
    }
    record["load_average"] = {"before": load, "after": environment.load_average()}
    report = document.text(record)
    print(report)
    if options.json is not None:
        write_json(record, options.json)
    if options.out is not None:
        write_text(report + "\n", options.out)


def asked(options: argparse.Namespace) -> str:
    """The command, without what is as by default and without `--json`."""
    words = ["python", "-m", "bench", "report"]
    words += ["--spec", *options.spec] if options.spec else []
    words += ["--rounds", str(options.rounds)] if options.rounds != ROUNDS else []
    words += ["--rows", str(options.rows)] if options.rows else []
    words += ["--out", str(options.out)] if options.out else []
    return shlex.join(words)


def with_formulations(names: tuple[str, ...]) -> Titled:
    """The specs of these names that have usual formulations.

    Raises:
        ValueError: there is none.
    """
    found = {title: spec for title, spec in chosen(ops.PRESETS, names).items() if ops.of(spec).baselines(spec)}
    if not found:
        raise ValueError(f"nobody's usual formulation is known of {', '.join(names)}")
    return found
