"""`convert`: a checkpoint in another format."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from megalodon_jax.atomic import require_new
from megalodon_jax.cli import verify
from megalodon_jax.cli.errors import CommandError, bad_input
from megalodon_jax.config import MegalodonConfig
from megalodon_jax.convert.checkpoints import FORMATS, find_config, open_parameters, write_checkpoint
from megalodon_jax.convert.config_files import read_config
from megalodon_jax.convert.pickles import require_safe_torch
from megalodon_jax.files import Pending
from megalodon_jax.precision import is_sensitive


def add_parser(subcommands) -> None:
    """Declare the subcommand."""
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "convert",
        help="convert a checkpoint to or from PyTorch",
        description="Convert a checkpoint of ours, of megalodon-hf or of the CUDA release to any of these formats.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="IN", help="folder of a checkpoint, or a file of weights")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write, which must not be there yet")
    parser.add_argument("--to", choices=FORMATS, default="jax", help="format of OUT (default: jax, ours)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"),
        help="of the weights but for the sensitive ones, which stay float32 (default: what the config says)",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="config.json in any of the three formats (default: the one of IN)"
    )
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read pickles too (.pth, .pt, .bin); only from someone you trust"
    )
    parser.add_argument(
        "--verify", action="store_true",
        help="compare logits with the PyTorch oracle; needs torch, and about 20 bytes of memory per parameter",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write OUT and a line that says what is in it.

    Raises:
        CommandError: a config or weights that cannot be read or do not fit, OUT is there, or torch is needed and
            missing, or the logits differ.
    """
    form = FORMATS[options.to]
    with bad_input():
        require_new(options.out)
        config = read_config(options.config or find_config(options.checkpoint), options.dtype)
    if options.verify or options.to == "original":
        verify.require_torch()
    if options.verify and config.num_layers == 0:
        raise CommandError("a model without layers cannot be verified: the PyTorch oracle has none")
    if options.allow_pickle:
        try:
            require_safe_torch()
        except (ImportError, RuntimeError) as error:
            raise CommandError(str(error)) from error
    with bad_input():
        parameters = open_parameters(options.checkpoint, config, options.allow_pickle)
        tensors = form.tensors(parameters, config)
        with _bar(len(tensors)) as advance:
            lost = write_checkpoint(form, options.out, _counted(tensors, advance), config)
    count = sum(int(np.prod(tensor.shape)) for tensor in parameters.values())
    kept = sum(int(np.prod(tensor.shape)) for name, tensor in parameters.items() if is_sensitive(name))
    print(
        f"{options.out} ({options.to}): {len(tensors)} tensors, {count:,} parameters, {config.param_dtype.name} "
        f"({kept:,} of them float32 always), {_size(options.out):.1f} MB"
    )
    if lost:
        said = ", ".join(f"{name} {value}" for name, value in lost.items())
        print(f"not kept, config.json of {options.to} has no place for it: {said}")
    if options.verify:
        _verify(options, config, parameters)


def _verify(options: argparse.Namespace, config: MegalodonConfig, parameters: Mapping[str, Pending]) -> None:
    found = verify.logit_error(parameters, config, options.out)
    said = (
        f"logits of IN here and of OUT in the float64 PyTorch oracle differ by {found:.1e} (relative RMS, "
        f"{verify.length(config)} tokens, chunks of {config.chunk_size})"
    )
    if not found <= verify.BOUND:
        raise CommandError(f"{said}, more than {verify.BOUND:.0e}; do not use {options.out}, and report this")
    print(f"{said}; the bound is {verify.BOUND:.0e}")


def _size(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6


def _counted(tensors: Mapping[str, Pending], advance: Callable[[], None]) -> dict[str, Pending]:
    def counted(tensor: Pending) -> Pending:
        def make() -> np.ndarray:
            value = tensor.make()
            advance()
            return value

        return dataclasses.replace(tensor, make=make)

    return {name: counted(tensor) for name, tensor in tensors.items()}


@contextmanager
def _bar(total: int) -> Iterator[Callable[[], None]]:
    """A progress bar where stderr is a terminal and rich is installed."""
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield lambda: None
        return
    console = Console(file=sys.stderr)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("tensors", total=total)
        yield lambda: bar.advance(task)
