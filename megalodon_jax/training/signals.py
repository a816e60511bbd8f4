"""Signals that ask a run to end: it finishes its step, saves, and says which one it was."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Request:
    """`came` is the signal that came, or None."""

    came: signal.Signals | None = None

    def __call__(self, number: int, _frame) -> None:
        """Note the signal; the second one interrupts at once."""
        if self.came is not None:
            raise KeyboardInterrupt("stopped at once by a second signal")
        self.came = signal.Signals(number)


@contextmanager
def stop_requests() -> Iterator[Request]:
    """SIGTERM and SIGINT only set `came` inside the block; in another thread than the main one nothing changes."""
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
