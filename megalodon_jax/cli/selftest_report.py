"""What `selftest` found, as a table and as a report."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan

MODES = ("forward", "forward+backward")
TESTED_WITH = {"fused_linear": ("round_weights",)}  # kernels that an op's problems run too
LEGEND = (
    "An error above what is allowed is a failure; errors of every problem are in the report.\n"
    "xla / kernel: above 1 the kernel is faster."
)
REFUSED = "KernelUnavailable: "  # begins the reason where a kernel does not run, and says so


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
        """Problems in which kernels are wrong or break down, or why nothing is known."""
        if self.record is None:
            return [self.reason]
        return [f"{place}: {reason}" for place, reason in _problems(self.record) if not reason.startswith(REFUSED)]

    @property
    def refusals(self) -> list[str]:
        """Why kernels do not run, where they say so."""
        reasons = [reason for _, reason in _problems(self.record)] if self.record else []
        return [reason.removeprefix(REFUSED) for reason in reasons if reason.startswith(REFUSED)]

    @property
    def passed(self) -> int:
        """Problems in which all is right."""
        return sum(entry["passed"] for entry in self.record["parity"]) if self.record else 0


@dataclass(frozen=True)
class Result:
    """Of one op: parity on the problems of the tests, and times of a large one where that passed; None: not yet."""

    op: str
    parity: Outcome | None = None
    times: Outcome | None = None

    @property
    def outcomes(self) -> list[Outcome]:
        """Those there are."""
        return [outcome for outcome in (self.parity, self.times) if outcome is not None]

    @property
    def failures(self) -> list[str]:
        """Of both."""
        return [failure for outcome in self.outcomes for failure in outcome.failures]

    @property
    def refusals(self) -> list[str]:
        """Of both."""
        return [refusal for outcome in self.outcomes for refusal in outcome.refusals]

    @property
    def tested(self) -> bool:
        """Did a kernel run, break down or refuse?"""
        if self.parity is None:
            return False
        return self.parity.record is None or self.parity.record["config"]["kernel"] is not None


def summary(results: Sequence[Result]) -> str:
    """A row for each op, and what to do about those that failed."""
    rows = [("op", "passed", "worst error / allowed", "of", *(f"{mode}, xla / kernel" for mode in MODES))]
    rows += [_row(result) for result in results]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    table = (f"| {' | '.join(row)} |" for row in padded)
    return "\n".join([*table, "", LEGEND, "", verdict(results)])


def verdict(results: Sequence[Result]) -> str:
    """What failed, and how those kernels are switched off; what refused; what is not known."""
    failed = [result for result in results if result.failures]
    refused = dict.fromkeys(f"refused: {refusal}" for result in results for refusal in result.refusals)
    unknown = ", ".join(result.op for result in results if not result.tested)
    parts = [_switches(failed)] if failed else []
    if refused:
        parts.append("\n".join([*refused, "There the reference runs, with nothing to switch off."]))
    if unknown:
        parts.append(f"Not tested, without a GPU or not yet: {unknown}.")
    return "\n\n".join(parts) or "Every kernel passed."


def _switches(failed: Sequence[Result]) -> str:
    ops = [op for result in failed for op in (result.op, *TESTED_WITH.get(result.op, ()))]
    variable = ",".join(f"{op}=xla" for op in ops)
    arguments = ", ".join(f"{op}='xla'" for op in ops)
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
        for outcome in result.outcomes:
            sections.append(f"# {result.op}\n\n{_report(outcome)}")
    return "\n\n".join(sections) + "\n"


def _problems(record: dict) -> Iterator[tuple[str, str]]:
    """Where kernels are wrong or do not run, and why; what becomes of the usual formulations is another matter."""
    for entry in record["parity"]:
        if not entry["passed"]:
            names = [line["name"] for line in entry["lines"] if not line["within"]]
            yield entry["title"], entry["reason"] or f"wrong in {', '.join(names)}"
    kernel = record["config"]["kernel"]
    for case in record["cases"]:
        place = f"{case['title']}, {case['mode']}"
        if kernel in case["failures"]:
            yield place, case["failures"][kernel]
        elif kernel in case["implementations"] and not case["implementations"][kernel]["difference"]["within"]:
            yield place, f"{case['implementations'][kernel]['difference']['name']} differs from that of xla"


def _row(result: Result) -> tuple[str, ...]:
    nothing = ["-"] * len(MODES)
    if not result.tested:
        return result.op, "not tested", "-", "-", *nothing
    if result.parity is None or result.parity.record is None:
        return result.op, "FAILED", "-", "-", *nothing
    entries = result.parity.record["parity"]
    lines = [(line["share"], entry["title"], line["name"]) for entry in entries for line in entry["lines"]]
    share, *place = max(lines, key=lambda line: (isnan(line[0]), line[0]), default=(None,))
    worst = "-" if share is None else f"{share:.2f}"
    where = ", ".join(place).removeprefix(f"{result.op}: ") or "-"
    refused = result.parity.refusals and not result.parity.passed and not result.parity.failures
    passed = "refused" if refused else f"{result.parity.passed} of {len(entries)}"
    return result.op, passed, worst, where, *_speedups(result.times)


def _speedups(times: Outcome | None) -> list[str]:
    found = dict.fromkeys(MODES, "-")
    if times is not None and times.record is not None:
        for case in times.record["cases"]:
            speedup = case["implementations"].get(times.record["config"]["kernel"], {}).get("speedup")
            found[case["mode"]] = "-" if speedup is None else f"{speedup:.2f}"
    return list(found.values())


def _report(outcome: Outcome) -> str:
    return outcome.report if outcome.record is not None else f"{outcome.reason}\n\n```\n{outcome.report.strip()}\n```"
