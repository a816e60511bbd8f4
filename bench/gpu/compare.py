"""Two records of runs on a GPU, program by program: the ratio of their times, and whether it is more than noise.

    ratio = median time in B / median time in A

It counts as more than noise where the interval that holds 95 of 100 such ratios of samples drawn anew (with
replacement, from the samples of each record) lies wholly on one side of 1, and the ratio is away from 1 by more than
SMALLEST: clocks and temperatures differ by that between two processes.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.gpu.report import table
from bench.gpu.session import FORMAT

DRAWN = 2000
SMALLEST = 0.02
_HEADER = ("problem", "mode", "implementation", "A ms", "B ms", "B / A", "95 %", "verdict")


def read(file: Path) -> dict:
    """A record that `bench gpu` wrote.

    Raises:
        ValueError: there is none in the file.
    """
    try:
        record = json.loads(file.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{file} is no record of `python -m bench gpu` (format {FORMAT})")
    return record


def text(a: dict, b: dict) -> str:
    """What differs between the runs, and a row for each program that both have.

    Raises:
        ValueError: they have none in common.
    """
    rows = list(_rows(a, b))
    if not rows:
        raise ValueError("the records have no program in common")
    changed = [f"- {name}: {was} in A, {is_} in B" for name, was, is_ in _conditions(a, b) if was != is_]
    if a["device"]["kind"] != b["device"]["kind"]:
        changed.append("- **The devices differ**: ratios compare them as well.")
    return "\n".join(["# bench compare", "", *(changed or ["- same device, versions and revision"]), "", *_table(rows)])


def ratio(a: Sequence[float], b: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Of the medians of two samples, and the ends of the interval that holds 95 of 100 when drawn anew."""
    r = np.random.default_rng(seed)
    medians = [np.median(r.choice(np.asarray(one), (DRAWN, len(one))), axis=1) for one in (a, b)]
    low, high = np.quantile(medians[1] / medians[0], (0.025, 0.975))
    return float(np.median(b) / np.median(a)), float(low), float(high)


def verdict(value: float, low: float, high: float) -> str:
    """ "faster", "slower" or "noise", of B against A."""
    if abs(value - 1.0) <= SMALLEST or low <= 1.0 <= high:
        return "noise"
    return "faster" if value < 1.0 else "slower"


def _rows(a: dict, b: dict) -> Iterator[list[str]]:
    before = dict(_programs(a))
    for key, (kind, samples) in _programs(b):
        if key in before and before[key][0] == kind:
            value, low, high = ratio(before[key][1], samples)
            medians = (f"{np.median(one):.4f}" for one in (before[key][1], samples))
            yield [*key, *medians, f"{value:.3f}", f"{low:.3f}-{high:.3f}", verdict(value, low, high)]


def _programs(record: dict) -> Iterator[tuple[tuple[str, str, str], tuple[str, list[float]]]]:
    """Kind of time and samples of each program."""
    for case in record["cases"]:
        for name, one in case["implementations"].items():
            yield (case["title"], case["mode"], name), (case["time"], one["samples_ms"])


def _conditions(a: dict, b: dict) -> Iterator[tuple[str, object, object]]:
    yield "device", a["device"]["kind"], b["device"]["kind"]
    yield "runtime", a["device"]["runtime"], b["device"]["runtime"]
    yield "revision", a["revision"], b["revision"]
    for kind in ("versions", "variables"):
        for name in dict.fromkeys([*a[kind], *b[kind]]):
            yield name, a[kind].get(name), b[kind].get(name)


def _table(rows: list[list[str]]) -> list[str]:
    return [table(_HEADER, rows, left=3), ""]
