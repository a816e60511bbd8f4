"""Errors that are the user's to fix: one line on stderr and exit code 2, never a traceback."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

_EXTRA_TRAIN = {
    "matplotlib": "matplotlib",
    "orbax": "orbax-checkpoint",
    "rich": "rich",
    "tensorboardX": "tensorboardx",
    "yaml": "pyyaml",
}


class CommandError(Exception):
    """Bad input to a subcommand; the message says what was given, what is expected and what to do."""


@contextmanager
def bad_input() -> Iterator[None]:
    """Turn the ValueError, KeyError or OSError of whatever reads the user's input into a `CommandError`."""
    try:
        yield
    except KeyError as error:  # its text is a repr
        raise CommandError(error.args[0]) from error
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from error


def require_extra_train() -> None:
    """Is there what the extra `train` brings? Nothing of it is imported.

    Raises:
        CommandError: a package is not installed.
    """
    for module, package in _EXTRA_TRAIN.items():
        if importlib.util.find_spec(module) is None:
            raise CommandError(f'{package} is not installed; pip install "megalodon-pallas[train]"')
