"""Errors that are the user's to fix: one line on stderr and exit code 2, never a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


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
    """Import what the extra `train` brings.

    Raises:
        CommandError: rich or matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
        import rich  # noqa: F401
    except ImportError as error:
        raise CommandError(f'{error.name} is not installed; pip install "megalodon-pallas[train]"') from error
