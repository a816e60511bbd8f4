"""Signals that ask a run to end: it finishes its step, saves, and says which one it was."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Request:
    """`came` is the signal that came, or None; `before` are the handlers that it stands in for."""

    def __init__(self):
        self.came: signal.Signals | None = None
        self.before: dict[signal.Signals, Any] = {}

    def __call__(self, number: int, _frame) -> None:
        """Note the signal; the second one interrupts at once."""
        if self.came is not None:
            raise KeyboardInterrupt("stopped at once by a second signal")
        self.came = signal.Signals(number)

    def let_go(self) -> None:
        """From now on signals do what they did before the block."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}


@contextmanager
def stop_requests() -> Iterator[Request]:
    """SIGTERM and SIGINT only set `came` inside the block; in another thread than the main one nothing changes."""
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    request.before = {number: signal.signal(number, request) for number in _SIGNALS}
    try:
        yield request
    finally:
        request.let_go()
