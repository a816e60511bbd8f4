"""Argument types and the options that several subcommands share."""

import argparse
from pathlib import Path
from tempfile import TemporaryFile


def positive_int(text: str) -> int:
    """An int of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def positive_float(text: str) -> float:
    """A finite float above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not positive and finite")
    return value


def window(text: str) -> int:
    """A sequence length: at least 2, one byte to predict from and one to predict."""
    value = int(text)
    if value < 2:
        raise argparse.ArgumentTypeError(f"{value} is too short, at least 2 bytes are needed")
    return value


def seed(text: str) -> int:
    """A seed for both NumPy and JAX."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected an integer in [0, 2^32), got {text!r}")
    return int(text)


def output_file(text: str) -> Path:
    """A path that is no folder, in a folder that files can be written to; leaves nothing there."""
    path = Path(text)
    folder = path.absolute().parent
    try:
        if path.is_dir() or not folder.is_dir():
            raise argparse.ArgumentTypeError(f"expected a file in an existing folder, got {text!r}")
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: {error.strerror}") from error
    return path


def output_picture(text: str) -> Path:
    """As `output_file`, of a name that ends in .png."""
    if Path(text).suffix != ".png":
        raise argparse.ArgumentTypeError(f"expected a file that ends in .png, got {text!r}")
    return output_file(text)


def add_data(parser: argparse.ArgumentParser) -> None:
    """--data and --seed."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="bytes to train on, plain or .gz (default: text that comes with Python)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="for initial weights, batches and sampling (default: 0)")
