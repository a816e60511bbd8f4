"""A finished record as plain-text tables, or as a JSON file."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from bench.programs import MODES


def text(record: dict) -> str:
    """The whole report."""
    sections = [_header(record), _parity(record)]
    for mode in MODES:
        cases = [case for case in record["cases"] if case["mode"] == mode]
        sections += [_times(mode, cases), _errors(mode, cases), _memory(mode, cases)]
    sections += [_growth(record["growth"]), _targets(record["targets"])]
    return "\n\n".join(sections)


def write_json(record: dict, path: Path) -> None:
    """Write `record` as `write_text` does."""
    write_text(json.dumps(record, indent=1) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write a file so that it holds either its old content or all of the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 0) -> str:
    """Columns under a header, right-aligned but for the first `left`."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    align = [str.ljust if column < left else str.rjust for column in range(len(widths))]
    lines = ([put(cell, width) for put, cell, width in zip(align, row, widths, strict=True)] for row in (header, *rows))
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _header(record: dict) -> str:
    config, load = record["config"], record["load_average"]
    return "\n".join(
        [
            ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
            f"{record['machine']['cpu']}, {record['machine']['cores']} cores, "
            f"load average {load['before']:.2f} before and {load['after']:.2f} after",
            f"complex_ema, B = {config['batch']}, D = {config['features']}, N = {config['states']}, {config['dtype']}, "
            f"|q| in {config['modulus']}, {config['rounds']} interleaved rounds, seed {config['seed']}",
            "fft: convolution with directly computed powers of q; scan: complex lax.scan over time;",
            f"ours packed: with segment_ids, documents of {config['mean_document']} tokens on average",
        ]
    )


def _parity(record: dict) -> str:
    bound = "relative RMS error of ours <= 2 x that of the scan + 8 eps, for y and every gradient"
    if record["parity"]["passed"]:
        return f"Parity with the float64 oracle: passed ({bound})"
    return "\n  ".join(
        [f"Parity with the float64 oracle: FAILED, so no ratios ({bound})", *record["parity"]["failures"]]
    )


def _times(mode: str, cases: list[dict]) -> str:
    rows = []
    for case in cases:
        row = [str(case["length"])]
        for program in case["programs"].values():
            row += [f"{program['median'][part]:.1f}" for part in ("user_ms", "system_ms")]
        rows.append(row + [f"{ratio:.2f}" for ratio in (case["ratios"] or {}).values()])
    header = ["L"]
    for name in cases[0]["programs"]:
        header += [f"{name} user", "sys"]
    title = f"{mode}: CPU ms per call (medians; ratios are of user + system)"
    return f"{title}\n{table(header + list(cases[0]['ratios'] or {}), rows)}"


def _errors(mode: str, cases: list[dict]) -> str:
    """y, and the gradient with the largest relative RMS error of each program."""
    rows = []
    for case in cases:
        for which in ("y",) if mode == "forward" else ("y", "worst gradient"):
            row = [str(case["length"]), which]
            for program in case["programs"].values():
                errors = program["errors"]
                tensor = which if which == "y" else max(set(errors) - {"y"}, key=lambda t: errors[t]["relative_rms"])
                figures = f"{errors[tensor]['relative_rms']:.1e} / {errors[tensor]['max_abs']:.1e}"
                row.append(figures if which == "y" else f"d{tensor} {figures}")
            rows.append(row)
    title = f"{mode}: error against the float64 oracle, every element compared (relative RMS / max abs)"
    return f"{title}\n{table(['L', '', *cases[0]['programs']], rows)}"


def _memory(mode: str, cases: list[dict]) -> str:
    rows = [
        [str(case["length"]), *(f"{program['temp_bytes'] / 1e6:.1f}" for program in case["programs"].values())]
        for case in cases
    ]
    return f"{mode}: peak temporary memory, MB\n{table(['L', *cases[0]['programs']], rows)}"


def _growth(growth: dict) -> str:
    rows = [
        [mode, what.replace("_", " "), *("-" if e[what] is None else f"{e[what]:.2f}" for e in programs.values())]
        for mode, programs in growth.items()
        for what in ("cpu_time", "temp_memory")
    ]
    header = ["", "", *growth[MODES[0]]]
    return f"Growth exponents with L (least squares over all lengths; 1 = linear)\n{table(header, rows)}"


def _targets(targets: list[dict] | None) -> str:
    if targets is None:
        return "Targets: not judged, parity failed"
    if not targets:
        return "Targets: none at these lengths"
    lines = [f"target {t['target']}: {'met' if t['met'] else 'not met'} ({t['figure']:.2f})" for t in targets]
    return "\n".join(lines)
