"""`selftest`: parity and speed of every op on this machine's GPU, in a file that a bug report can bring along.

Each op is tested by `python -m bench gpu` in a process of its own: a kernel that takes its process with it, or leaves a
GPU that answers nothing any more, is a row of the table like any other failure. This process never touches the GPU.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from megalodon_jax.cli.arguments import positive_float
from megalodon_jax.cli.errors import CommandError
from megalodon_jax.cli.selftest_report import MODES, Outcome, Result, summary
from megalodon_jax.cli.selftest_report import text as report_text

OPS = (
    "feature_norm", "timestep_norm", "normalized_rotary", "complex_ema", "chunked_attention", "fused_linear",
    "linear_cross_entropy",
)  # fmt: skip
TIMED = {"fused_linear": "2560 to 512", "linear_cross_entropy": "512 to 32000"}  # of the others, the headline
NO_DEVICE = 3  # exit code of `bench gpu`
REPORT = Path("megalodon-selftest.md")
MINUTES = 30.0


def add_parser(subcommands) -> None:
    """Declare the subcommand."""
    about = "test every kernel on this machine's GPU"
    parser: argparse.ArgumentParser = subcommands.add_parser("selftest", help=about, description=about)
    parser.add_argument("--op", nargs="+", choices=OPS, default=OPS, metavar="OP", help=f"of {', '.join(OPS)}")
    parser.add_argument(
        "--out", type=Path, default=REPORT, metavar="FILE", help=f"the report, in Markdown (default: {REPORT})"
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
    """Test, print the table, write the report; 1 where something failed.

    Raises:
        CommandError: there is no GPU, or no place for the report.
    """
    if not options.out.absolute().parent.is_dir() or options.out.is_dir():
        raise CommandError(f"--out {options.out}: expected a file in an existing folder")
    results = []
    for op in options.op:
        print(f"testing {op} ...", file=sys.stderr, flush=True)
        results.append(test(op, options.device, 60 * options.minutes))
    table = summary(results)
    options.out.write_text(report_text(table, results, environment()))
    print(f"{table}\n\nThe report is {options.out}; a bug report with it says all there is to know.")
    return 0 if not any(result.failures for result in results) else 1


def test(op: str, device: str, seconds: float) -> Result:
    """One op.

    Raises:
        CommandError: there is no GPU.
    """
    parity = bench(["--suite", "parity", "--spec", op, "--device", device], seconds)
    if parity.failures or device == "cpu":
        return Result(op, parity)
    large = f"{op}: {TIMED.get(op, 'headline')}"
    return Result(op, parity, bench(["--suite", "ops", "--spec", large, "--mode", *MODES], seconds))


def bench(arguments: list[str], seconds: float) -> Outcome:
    """Run `python -m bench gpu` and read what it wrote.

    Raises:
        CommandError: there is no GPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bench", "gpu", *arguments, "--out", folder]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return Outcome(None, "", f"no answer after {seconds / 60:g} minutes")
        if ended.returncode == NO_DEVICE:
            raise CommandError(ended.stderr.strip().splitlines()[-1])
        record, report = Path(folder, "record.json"), Path(folder, "report.md")
        if record.exists() and report.exists():
            return Outcome(json.loads(record.read_text()), report.read_text())
        last = " ".join(ended.stderr.split())[-300:]
        return Outcome(None, ended.stderr[-4000:], f"the process ended with {ended.returncode}: {last}")


def environment() -> str:
    """Versions, devices and settings, each asked for in a process of its own."""
    asked = [[sys.executable, "-m", "megalodon_jax", "doctor"]]
    if shutil.which("nvidia-smi"):
        asked.append(["nvidia-smi"])
    return "\n".join(subprocess.run(one, capture_output=True, text=True, check=False).stdout for one in asked)
