"""What `selftest` found, as a table and as a report."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MODES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Outcome:
    """What became of a process.

    Attributes:
        record, report: what it wrote; None, and the end of what it printed, where it did not get that far.
        reason: why it did not.
    """

    record: dict | None
    report: str
    reason: str = ""

    @property
    def failures(self) -> list[str]:
        """Problems in which kernels are wrong or do not run, or why nothing is known."""
        if self.record is None:
            return [self.reason]
        return [*_wrong(self.record), *_not_measured(self.record)]


@dataclass(frozen=True)
class Result:
    """Of one op: parity on the problems of the tests, and times of a large one where that passed."""

    op: str
    parity: Outcome
    times: Outcome | None = None

    @property
    def failures(self) -> list[str]:
        """Of both."""
        return [*self.parity.failures, *(self.times.failures if self.times else ())]


def summary(results: Sequence[Result]) -> str:
    """A row for each op, and what to do about those that failed."""
    rows = [("op", "passed", "worst share", "in", *(f"{mode}, xla / kernel" for mode in MODES))]
    rows += [_row(result) for result in results]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join([*(f"| {' | '.join(row)} |" for row in padded), "", verdict(results)])


def verdict(results: Sequence[Result]) -> str:
    """What failed, and how those kernels are switched off."""
    if any(result.parity.record and result.parity.record["config"]["kernel"] is None for result in results):
        return "No kernel was tested: this is no GPU."
    failed = [result for result in results if result.failures]
    if not failed:
        return "Every kernel passed."
    variable = ",".join(f"{result.op}=xla" for result in failed)
    arguments = ", ".join(f"{result.op}='xla'" for result in failed)
    return "\n".join(
        [
            *(f"FAILED {result.op}: {failure}" for result in failed for failure in result.failures),
            "",
            "Until that is mended, switch these kernels off: for a process by",
            f'    export PALLAS_KERNELS_IMPLEMENTATION="{variable}"',
            "or in a program by",
            f"    with use_implementation({arguments}): ...",
        ]
    )


def text(table: str, results: Sequence[Result], environment: str) -> str:
    """The whole report, in Markdown."""
    sections = ["# megalodon-pallas selftest", table, f"## Environment\n\n```\n{environment.strip()}\n```"]
    for result in results:
        for outcome in filter(None, (result.parity, result.times)):
            sections.append(f"# {result.op}\n\n{_report(outcome)}")
    return "\n\n".join(sections) + "\n"


def _wrong(record: dict) -> Iterator[str]:
    for entry in record["parity"]:
        if not entry["passed"]:
            names = [line["name"] for line in entry["lines"] if not line["within"]]
            yield f"{entry['title']}: {entry['reason'] or 'wrong in ' + ', '.join(names)}"


def _not_measured(record: dict) -> Iterator[str]:
    """Kernels that failed at full size; what became of other people's formulas there is another matter."""
    kernel = record["config"]["kernel"]
    for case in record["cases"]:
        place = f"{case['title']}, {case['mode']}"
        if kernel in case["failures"]:
            yield f"{place}: {case['failures'][kernel]}"
        elif kernel in case["implementations"] and not case["implementations"][kernel]["difference"]["within"]:
            yield f"{place}: {case['implementations'][kernel]['difference']['name']} differs from that of xla"


def _row(result: Result) -> tuple[str, ...]:
    record = result.parity.record
    if record is None:
        return result.op, "FAILED", "-", "-", *["-"] * len(MODES)
    lines = [(line["share"], entry["title"], line["name"]) for entry in record["parity"] for line in entry["lines"]]
    share, *place = max(lines, default=(float("nan"), "nothing"))
    passed = sum(entry["passed"] for entry in record["parity"])
    where = ", ".join(place).removeprefix(f"{result.op}: ")
    return result.op, f"{passed} of {len(record['parity'])}", f"{share:.2f}", where, *_speedups(result.times)


def _speedups(times: Outcome | None) -> list[str]:
    found = dict.fromkeys(MODES, "-")
    if times is not None and times.record is not None:
        for case in times.record["cases"]:
            speedup = case["implementations"].get(times.record["config"]["kernel"], {}).get("speedup")
            found[case["mode"]] = "-" if speedup is None else f"{speedup:.2f}"
    return list(found.values())


def _report(outcome: Outcome) -> str:
    return outcome.report if outcome.record is not None else f"{outcome.reason}\n\n```\n{outcome.report.strip()}\n```"
