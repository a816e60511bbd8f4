"""`train`: train a model as a config says."""

import argparse
import signal
from pathlib import Path

from megalodon_jax.cli.errors import CommandError, bad_input, require_extra_train
from megalodon_jax.cli.processes import add_processes, connect, prints_once

TERMINATED = 128 + signal.SIGTERM  # what shells report of a process that SIGTERM has ended


def add_parser(subcommands) -> None:
    """Declare the subcommand."""
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "train",
        help="train a model",
        description="Train a model as a config says. SIGTERM or Ctrl-C: finish the step, save, exit code 143 or 130.",
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE",
        help="YAML file, or one that comes with the package: megalodon_multichunk_512, llama_512, test",
    )  # fmt: skip
    parser.add_argument(
        "--resume", metavar="auto|PATH",
        help="go on from the latest checkpoint in run_dir, if there is one, or from a run or RUN/checkpoints/STEP",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is in run_dir")
    add_processes(parser)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="change the config: steps=200 data.path=text.txt model=llama; together, before or behind all options",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train, as one of several processes or alone, and say where everything is; the exit code.

    Raises:
        CommandError: bad input, a folder that cannot be written, or losses that are not finite.
        KeyboardInterrupt: after Ctrl-C, with where the checkpoint is.
    """
    require_extra_train()
    connect(options)
    with prints_once():
        return _train(options)


def _train(options: argparse.Namespace) -> int:
    from megalodon_jax.cli import display
    from megalodon_jax.training import config_files, folder, loop

    with bad_input():
        config = config_files.load(options.config, options.overrides)
        opened, point = loop.open_run(config, resume=options.resume, overwrite=options.overwrite)
    print(opened.describe())
    begun = "new run" if point is None else f"going on from step {point.step} of {point.checkpoints}"
    print(f"{begun} in {config.run_dir}, up to step {config.steps}; compiling", flush=True)
    try:
        with display.training(config.steps, config.data.unit) as show:
            outcome = loop.run_to_its_end(opened, point, show)
    except (OSError, loop.Diverged) as error:
        raise CommandError(str(error)) from error
    run_folder = Path(config.run_dir)
    saved = f"the checkpoint of step {outcome.step} is in {run_folder / folder.CHECKPOINTS / str(outcome.step)}"
    if outcome.ended_by == signal.SIGINT:
        raise KeyboardInterrupt(saved)
    if outcome.ended_by == signal.SIGTERM:
        print(f"terminated; {saved}")
        return TERMINATED
    print(f"{outcome.step} steps; the best validation loss is {outcome.best.describe(config.data.unit)}; {saved}")
    if (run_folder / folder.FINAL).exists():
        print(f"wrote {run_folder / folder.FINAL}, for python -m megalodon_jax generate")
    return 0
