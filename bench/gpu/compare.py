"""Two records of runs on a GPU, program by program: the ratio of their times, and whether it is more than noise.

    ratio = median time in B / median time in A

It counts as more than noise where the interval that holds 95 of 100 such ratios of samples drawn anew (with
replacement, from the samples of each record) lies wholly on one side of 1, and the ratio is away from 1 by more than
SMALLEST: clocks and temperatures differ by that between two processes. Fewer than FEWEST samples tell nothing of their
noise. There is no ratio of a program that has no speedup in one of the records, because its parity failed there or it
differs from the reference.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bench.gpu.checks import said
from bench.gpu.session import FORMAT
from bench.markdown import table

Key = tuple[str, str, str, str]  # title, problem, mode, implementation

DRAWN = 2000
SMALLEST = 0.02
FEWEST = 5
TOO_FEW = "too few rounds"
NO_GPU = "no GPU"
RECORD = "record.json"
NOT_PROVEN = "not proven"
_HEADER = ("problem", "mode", "implementation", "A ms", "B ms", "B / A", "95 %", "verdict")


def read(file: Path) -> dict:
    """A record that `bench gpu` wrote, to this file or this folder.

    Raises:
        ValueError: there is none, or part of it is missing.
    """
    try:
        file = file / RECORD if file.is_dir() else file
        record = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{file} is no record of `python -m bench gpu --out FOLDER` (format {FORMAT})")
    try:
        for part in (_rows(record, record), _conditions(record, record)):
            list(part)
        _failures(record)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{file} is damaged, a part of the record is missing: {said(error)}") from error
    return record


def text(a: dict, b: dict) -> str:
    """What differs between the runs, a row for each program that both have, and the programs that one of them has.

    Raises:
        ValueError: they have none in common.
    """
    rows = list(_rows(a, b))
    if not rows:
        raise ValueError("the records have no program in common")
    changed = [f"- {name}: {was} in A, {is_} in B" for name, was, is_ in _conditions(a, b) if was != is_]
    if a["device"]["kind"] != b["device"]["kind"]:
        changed.append("- **The devices differ**: ratios compare them as well.")
    same = ["- same device, versions, revision, variables and options, but for the seed"]
    cpu = ["- **No GPU**, no verdicts: processes on a CPU differ by more than their samples tell."]
    notes = (changed or same) + (cpu if _on_cpu(a) or _on_cpu(b) else [])
    return "\n".join(["# bench compare", "", *notes, "", table(_HEADER, rows, left=3), *_apart(a, b)])


def ratio(a: Sequence[float], b: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Of the medians of two samples, and the ends of the interval that holds 95 of 100 when drawn anew.

    The interval is without end where there are fewer than FEWEST samples.

    Raises:
        ValueError: there is none.
    """
    if not (a and b):
        raise ValueError("a program without samples")
    if min(len(a), len(b)) < FEWEST:
        return float(np.median(b) / np.median(a)), 0.0, math.inf
    r = np.random.default_rng(seed)
    medians = [np.median(r.choice(np.asarray(one), (DRAWN, len(one))), axis=1) for one in (a, b)]
    low, high = np.quantile(medians[1] / medians[0], (0.025, 0.975))
    return float(np.median(b) / np.median(a)), float(low), float(high)


def verdict(value: float, low: float, high: float) -> str:
    """ "faster", "slower" or "noise", of B against A; TOO_FEW where the interval has no end."""
    if math.isinf(high):
        return TOO_FEW
    if abs(value - 1.0) <= SMALLEST or low <= 1.0 <= high:
        return "noise"
    return "faster" if value < 1.0 else "slower"


def _rows(a: dict, b: dict) -> Iterator[list[str]]:
    before = _programs(a)
    for key, (kind, after) in _programs(b).items():
        if key not in before or before[key][0] != kind:
            continue
        title, _, mode, name = key
        both = before[key][1], after
        row = [title, mode, name, *(f"{one['ms']:.4f}" for one in both)]
        if any(one["speedup"] is None for one in both):
            yield [*row, "-", "-", NOT_PROVEN]
            continue
        value, low, high = ratio(*(one["samples_ms"] for one in both))
        interval = "-" if math.isinf(high) else f"{low:.3f}-{high:.3f}"
        judged = NO_GPU if _on_cpu(a) or _on_cpu(b) else verdict(value, low, high)
        yield [*row, f"{value:.3f}", interval, judged]


def _apart(a: dict, b: dict) -> list[str]:
    """Programs that have a time in one record alone, with the reason where the other has one, or two kinds of time."""
    programs, failures = {"A": _programs(a), "B": _programs(b)}, {"A": _failures(a), "B": _failures(b)}
    found = []
    for here, there in ("AB", "BA"):
        for key, (kind, _) in programs[here].items():
            title, problem, mode, name = key
            named = f"- {title} ({problem}), {mode}, {name}"
            if key not in programs[there]:
                found.append(": ".join(filter(None, [named, f"only in {here}", failures[there].get(key)])))
            elif here == "A" and (other := programs[there][key][0]) != kind:
                found.append(f"{named}: {kind} time in A, {other} time in B")
    return ["", "## Not compared", "", *found] if found else []


def _programs(record: dict) -> dict[Key, tuple[str, dict]]:
    """Kind of time and figures of each program."""
    return {
        (case["title"], case["problem"], case["mode"], name): (case["time"], one)
        for case in record["cases"]
        for name, one in case["implementations"].items()
    }


def _failures(record: dict) -> dict[Key, str]:
    return {
        (case["title"], case["problem"], case["mode"], name): reason
        for case in record["cases"]
        for name, reason in case["failures"].items()
    }


def _on_cpu(record: dict) -> bool:
    return record["config"]["kernel"] is None


def _conditions(a: dict, b: dict) -> Iterator[tuple[str, object, object]]:
    yield "device", a["device"]["kind"], b["device"]["kind"]
    yield "runtime", a["device"]["runtime"], b["device"]["runtime"]
    yield "revision", a["revision"], b["revision"]
    for kind in ("versions", "variables", "config"):
        for name in dict.fromkeys([*a[kind], *b[kind]]):
            if (kind, name) == ("config", "seed"):  # a new one each time
                continue
            yield name, a[kind].get(name), b[kind].get(name)
