"""The next batch on its way to the device while this one is computed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetch(Generic[Item]):
    """`make(first)`, `make(first + 1)`, ... one after the other; one thread is always one ahead.

    An error of `make` is raised by the `next` of that number. A context manager, which waits for the thread.
    """

    def __init__(self, make: Callable[[int], Item], first: int):
        self._make, self._number = make, first
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._ready: Future[Item] = self._pool.submit(make, first)

    def next(self) -> Item:
        """The next one, as soon as it is there."""
        item = self._ready.result()
        self._number += 1
        self._ready = self._pool.submit(self._make, self._number)
        return item

    def __enter__(self) -> "Prefetch[Item]":
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)
