"""`selftest`: parity and speed of the kernels on this machine's GPU, in a file that a bug report can bring along.

Of every op; round_weights rounds the weights of some problems of fused_linear. Each is tested by `python -m bench gpu`
in a process of its own: a kernel that takes its process with it is a row of the table like any other failure. A process
that ends before it ran a kernel, for a reason of its own or on a GPU that answers nothing any more, ends the command;
the report has what was found until then. This process never touches the GPU.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from megalodon_jax.atomic import replacing
from megalodon_jax.cli.arguments import output_file, positive_float
from megalodon_jax.cli.errors import CommandError, bad_input
from megalodon_jax.cli.selftest_report import MODES, Outcome, Result, summary
from megalodon_jax.cli.selftest_report import text as report_text

OPS = (
    "feature_norm", "timestep_norm", "normalized_rotary", "complex_ema", "chunked_attention", "fused_linear",
    "linear_cross_entropy",
)  # fmt: skip
TIMED = {"fused_linear": "2560 to 512", "linear_cross_entropy": "512 to 32000"}  # of the others, the headline
NO_DEVICE = 3  # exit code of `bench gpu`
STARTED = re.compile("^(comparing|measuring) ", re.MULTILINE)  # what it says of each problem
REPORT = "megalodon-selftest.md"
MINUTES = 30.0
ROOT = Path(__file__).parents[2]
PYTHON = (sys.executable, "-P", "-m")  # -P: a folder `bench` of the user's, where the command runs, is not ours
PATIENCE = 60.0  # seconds, for the environment


def add_parser(subcommands) -> None:
    """Declare the subcommand."""
    about = "test every op on this machine's GPU, round_weights as a part of fused_linear"
    parser: argparse.ArgumentParser = subcommands.add_parser("selftest", help=about, description=about)
    parser.add_argument("--op", nargs="+", choices=OPS, default=OPS, metavar="OP", help=f"of {', '.join(OPS)}")
    parser.add_argument(
        "--out", type=output_file, default=REPORT, metavar="FILE", help=f"the report, in Markdown (default: {REPORT})"
    )
    parser.add_argument(
        "--minutes", type=positive_float, default=MINUTES, metavar="M",
        help=f"after which a process is taken to hang (default: {MINUTES:g})",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("gpu", "cpu"), default="gpu", help="cpu: try the command out, without kernels"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Test, with the report written after every op, and print the table; 1 where something failed.

    Raises:
        CommandError: there is no GPU, a process ended before it tested anything, or the report cannot be written.
    """
    results = {op: Result(op) for op in options.op}
    table, place, surroundings = "", "", environment()
    try:
        for op in results:
            print(f"testing {op} ...", file=sys.stderr, flush=True)
            results[op] = test(op, options.device, 60 * options.minutes)
            table, place = summary(list(results.values())), ""
            write(options.out, table, list(results.values()), surroundings)
            place = f"\n\nThe report is {options.out}; a bug report with it says all there is to know."
    finally:
        if table:
            print(table + place, flush=True)
    return 0 if not any(result.failures for result in results.values()) else 1


def write(path: Path, table: str, results: list[Result], surroundings: str) -> None:
    """The report, in place of the last one.

    Raises:
        CommandError: it cannot be written.
    """
    with bad_input(), replacing(path) as file:
        file.write(report_text(table, results, surroundings).encode())


def test(op: str, device: str, seconds: float) -> Result:
    """One op; times where kernels ran and none failed.

    Raises:
        CommandError: as in `bench`.
    """
    parity = bench(["--suite", "parity", "--spec", op, "--device", device], seconds)
    if parity.failures or not parity.passed or device == "cpu":
        return Result(op, parity)
    large = f"{op}: {TIMED.get(op, 'headline')}"
    return Result(op, parity, bench(["--suite", "ops", "--spec", large, "--mode", *MODES], seconds))


def bench(arguments: list[str], seconds: float) -> Outcome:
    """Run `python -m bench gpu` and read what it wrote.

    Raises:
        CommandError: there is no GPU, or the process ended, or hung, before it tested anything.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [*PYTHON, "bench", "gpu", *arguments, "--out", folder]
        record, report, log = (Path(folder, name) for name in ("record.json", "report.md", "stderr"))
        try:
            with log.open("w") as file:
                ended = subprocess.run(
                    command, stdout=subprocess.DEVNULL, stderr=file, timeout=seconds, env=variables()
                )
                code = ended.returncode
            became = f"the process ended with {code}"
        except subprocess.TimeoutExpired:
            code, became = None, f"no answer after {seconds / 60:g} minutes"
        if record.exists() and report.exists():
            return Outcome(json.loads(record.read_text()), report.read_text())
        said = log.read_text(errors="replace").strip()
    if code == NO_DEVICE:
        raise CommandError(said.splitlines()[-1] if said else became)
    became = f"{became}: {' '.join(said.split()[-60:]) or 'without a word'}"
    if not STARTED.search(said):
        raise CommandError(f"`python -m bench gpu {' '.join(arguments)}` did not get to a kernel: {became}")
    return Outcome(None, said[-4000:], became)


def environment() -> str:
    """Versions, devices and settings, each asked for in a process of its own."""
    asked = [[*PYTHON, "megalodon_jax", "doctor"]]
    if shutil.which("nvidia-smi"):
        asked.append(["nvidia-smi"])
    return "\n".join(map(answer, asked))


def variables() -> dict[str, str]:
    """Of the environment; in a checkout, also where this package is: another one may be installed, or none."""
    checkout = [str(ROOT)] if (ROOT / "pyproject.toml").exists() else []
    path = os.pathsep.join([*checkout, *filter(None, [os.environ.get("PYTHONPATH")])])
    return dict(os.environ) | ({"PYTHONPATH": path} if path else {})


def answer(command: list[str]) -> str:
    """What a process prints, with its errors where it fails."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=variables())
    except subprocess.TimeoutExpired:
        return f"{' '.join(command)}: no answer after {PATIENCE:g} seconds"
    failed = f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr}"
    return f"{ended.stdout}{failed}" if ended.returncode else ended.stdout
