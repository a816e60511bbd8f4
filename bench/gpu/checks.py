"""Parity as an entry of a record: what a problem's kernels make wrong, or why they did not even run."""

from collections.abc import Callable
from dataclasses import asdict

from bench import tolerance
from bench.parity import Line


def entry(title: str, problem: str, length: int, compare: Callable[[], list[Line]], implementation: str = "") -> dict:
    """The lines that `compare` gives, and whether all keep to the policy; an error in it is a failure with a reason."""
    found = {"title": title, "implementation": implementation, "problem": problem, "length": length}
    try:
        lines = compare()
    except Exception as error:  # compilers and drivers raise what they like
        return found | {"passed": False, "lines": [], "reason": said(error)}
    return found | {
        "passed": all(map(tolerance.within, lines)),
        "lines": [
            asdict(line) | {"share": max(tolerance.shares(line)), "within": tolerance.within(line)} for line in lines
        ],
        "reason": "",
    }


def said(error: Exception) -> str:
    """An error in one line of a table."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
