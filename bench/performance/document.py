"""The report as one Markdown document."""

import shlex

from bench.markdown import table
from bench.performance import compiled, executed


def text(record: dict) -> str:
    """The whole document."""
    return "\n\n".join([_head(record), _compiled(record), _executed(record)])


def _head(record: dict) -> str:
    return f"""# Performance report

Printed by `{record["command"]}`.

Operations of the paper beside the forms in which they are usually written in JAX
([bench/formulations](../bench/formulations/__init__.py)). Figures of whole models are in
[whole_model.md](whole_model.md) and [performance.md](performance.md#a-whole-model). **Nothing here ran on a
GPU**: `python -m bench gpu --spec {shlex.join(record["names"])}` measures them there.

- {", ".join(f"{name} {version}" for name, version in record["versions"].items())}
- revision {record["revision"] or "unknown"}"""


def _compiled(record: dict) -> str:
    rows = []
    for case in record["compiled"]:
        ours = case["implementations"][compiled.KERNELS]
        for number, (name, one) in enumerate(case["implementations"].items()):
            rows.append(
                [
                    *([case["title"], case["mode"]] if number == 0 else ["", ""]),
                    name,
                    f"{one['bytes_moved'] / 1e9:.3f}",
                    f"{one['bytes_moved'] / ours['bytes_moved']:.1f}",
                    f"{one['temporary_bytes'] / 1e9:.3f}",
                    str(one["launches"]),
                ]
            )
    header = ("problem", "program", "implementation", "GB moved", "/ kernels", "temporary GB", "launches")
    return f"""## Compiled for an H100

Rung: **compiled** for {record["card"]}, not run. Launches: of the whole program, loops by their trip
counts. Moved: operands and results of every launch. Temporary: what XLA plans beside arguments and results.
forward+backward: outputs and all gradients. The XLA reference is this project's own, made for accuracy and for CPUs, in
many small steps. Batches and lengths differ between the operations: their rows do not add up.

{_problems(record["compiled"])}

{table(header, rows, left=3)}"""


def _executed(record: dict) -> str:
    machine, load, rows = record["machine"], record["load_average"], []
    for case in record["executed"]:
        for number, (name, one) in enumerate(case["implementations"].items()):
            ratio = "-" if one["ratio"] is None else f"{one['ratio']:.2f}"
            rows.append(
                [
                    *([case["title"], case["mode"]] if number == 0 else ["", ""]),
                    "ours" if name == executed.REFERENCE else name,
                    "does not fit" if one["cpu_ms"] is None else f"{one['cpu_ms']:.0f}",
                    ratio,
                    f"{one['temporary_bytes'] / 1e9:.3f}",
                    f"{one['error']['relative_rms']:.1e} ({one['error']['value']})",
                ]
            )
    header = ("problem", "program", "implementation", "CPU ms", "/ ours", "temporary GB", "largest error")
    where = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GB, load average "
        f"{load['before']:.2f} before and {load['after']:.2f} after"
    )
    return f"""## Executed on a CPU

Rung: **executed on CPU**, in float32: the reference, which is what runs there, beside the formulations.
{where};
median CPU time of {record["rounds"]} interleaved rounds. A program that would need more than {executed.PART:.0%} of the
memory does not fit: it was only compiled. Errors: the worst output or gradient against float64, relative RMS, of one
row, with as many heads and as long as the oracle has room for. A ratio stands where ours kept to the tolerance policy
beside that formulation.

{_problems(record["executed"])}

{table(header, rows, left=3)}"""


def _problems(cases: list[dict]) -> str:
    return "\n".join(f"- {title}: {problem}" for title, problem in {c["title"]: c["problem"] for c in cases}.items())
