"""A record of a run on a GPU as Markdown."""

from bench.markdown import table

_PARITY = ("problem", "worst value", "kernels: rms", "max", "reference: rms", "max", "share", "policy")
_TIMES = (
    "problem", "mode", "implementation", "ms", "quartiles", "wall ms", "GB/s", "TFLOP/s", "of roofline", "temporary MB",
    "compile s", "speedup",
)  # fmt: skip


def text(record: dict) -> str:
    """The whole report."""
    sections = [_header(record), _errors(record), _times(record), _failures(record)]
    return "\n\n".join(filter(None, sections)) + "\n"


def _header(record: dict) -> str:
    device, roofline, config = record["device"], record["roofline"], record["config"]
    lines = [
        f"# bench gpu --suite {record['suite']}",
        "",
        f"- {device['kind']}, {device['target']}, {device['runtime']}",
        "- " + ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        f"- revision {record['revision'] or 'unknown'}",
        "- " + (", ".join(f"{name}={value}" for name, value in record["variables"].items()) or "no variables set"),
        f"- {config['rounds']} interleaved rounds, inputs of seed {config['seed']}, for parity {config['parity_seed']}",
        f"- roofline: {roofline['bandwidth'] / 1e9:.0f} GB/s, {roofline['bfloat16'] / 1e12:.1f} TFLOP/s in bfloat16, "
        f"{roofline['float32'] / 1e12:.1f} in float32 ({roofline['source']})",
    ]
    if config["kernel"] is None:
        lines.append("- **No kernels**: this is no GPU. The figures say that the command works, and nothing else.")
    return "\n".join(lines)


def _errors(record: dict) -> str:
    """Of each problem the value that uses most of what the policy allows; of several, those that break it as well."""
    rows, tested = [], record["config"]["kernel"] is not None
    for entry in record["parity"]:
        title = " ".join(filter(None, [entry["title"], entry["implementation"]]))
        if not entry["lines"]:
            rows.append([title, entry["reason"], *["-"] * 5, "FAILED"])
            continue
        worst = max(entry["lines"], key=lambda line: (not line["within"], line["share"]))
        for line in [worst, *(one for one in entry["lines"] if not one["within"] and one is not worst)]:
            sides = ((line[side]["relative_rms"], line[side]["max_abs"]) for side in ("kernel", "reference"))
            kernels, reference = ([f"{error:.1e}" for error in side] for side in sides)
            verdict = [f"{line['share']:.2f}", "ok" if line["within"] else "FAILED"]
            if not tested:
                kernels, verdict = ["-", "-"], ["-", "not tested"]
            rows.append([title, line["name"], *kernels, *reference, *verdict])
    if not rows:
        return ""
    passed = f"{sum(entry['passed'] for entry in record['parity'])} of {len(record['parity'])} passed."
    about = f"Relative to the RMS of what is exact. {passed if tested else 'Kernels were not tested.'}"
    if record["suite"] == "ops":
        about += "\nProblems are cut to one row of the batch, and to what the float64 oracle has room for."
    return f"## Errors\n\n{about}\n\n{_problems(record['parity'])}\n\n{table(_PARITY, rows, left=2)}"


def _times(record: dict) -> str:
    if not record["cases"]:
        return ""
    rows = []
    for case in record["cases"]:
        for number, (name, one) in enumerate(case["implementations"].items()):
            head = [case["title"], case["mode"]] if number == 0 else ["", ""]
            rows.append([*head, name, *_row(case, one)])
    kinds = " and ".join(sorted({case["time"] for case in record["cases"]}))
    about = (
        f"ms: median {kinds} time. GB/s: arguments and results, each once. Of roofline: the least time for those bytes "
        "and for the matrix products, over ms.\nSpeedup: time of the first implementation over that of this one; `-` "
        "where parity failed or results differ."
    )
    return f"## Times\n\n{about}\n\n{_problems(record['cases'])}\n\n{table(_TIMES, rows, left=3)}"


def _problems(found: list[dict]) -> str:
    return "\n".join(f"- {title}: {sizes}" for title, sizes in {one["title"]: one["problem"] for one in found}.items())


def _row(case: dict, one: dict) -> list[str]:
    low, high = one["quartiles_ms"]
    rate = f"{one['operations_per_second'] / 1e12:.2f}" if case["operations"] else "-"
    return [
        f"{one['ms']:.4f}",
        f"{low:.4f}-{high:.4f}",
        f"{one['wall_ms']:.4f}",
        f"{one['bytes_per_second'] / 1e9:.1f}",
        rate,
        f"{100 * one['of_roofline']:.1f} %",
        f"{one['temporary_bytes'] / 1e6:.1f}",
        f"{one['compile_seconds']:.1f}",
        "-" if one["speedup"] is None else f"{one['speedup']:.2f}",
    ]


def _failures(record: dict) -> str:
    found = [
        f"- {case['title']}, {case['mode']}, {name}: {reason}"
        for case in record["cases"]
        for name, reason in case["failures"].items()
    ]
    found += [
        f"- {case['title']}, {case['mode']}, {name}: {one['difference']['name']} differs from the reference's by "
        f"{one['difference']['relative_rms']:.1e} (relative RMS)"
        for case in record["cases"]
        for name, one in case["implementations"].items()
        if not one["difference"]["within"]
    ]
    return "\n".join(["## Not compared", "", *found]) if found else ""
