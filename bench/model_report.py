"""The record of suite `model` of `inspect` as plain-text tables."""

from bench import model_targets
from bench.model_programs import MODEL_S, Shape, large
from bench.report import table

_MOST = 15  # source lines shown
_FIGURES = ("GB moved", "temp GB", "launches", "started")
_LINES_OF = ("forward", "training", "prefill", "decode")


def text(record: dict) -> str:
    """Per target the totals, source lines and single layers, and whether targets are met."""
    sections = [_header(record)]
    for target in record["targets"]:
        sections += [f"{target['target']}: {target['card']}", _totals(target["model"]), _lines(target["model"])]
        sections.append(_layers(target["layers"]))
    return "\n\n".join(
        [*sections, *(_targets(target["verdicts"]) for target in record["targets"] if target["verdicts"])]
    )


def _header(record: dict) -> str:
    c = MODEL_S.config
    return "\n".join(
        [
            ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
            "Compiled without a GPU: nothing was run or timed on one. Matmuls are not tuned without a GPU.",
            f"Model S: {c.num_layers} layers of dimension {c.model_dim}, chunks of {c.chunk_size}, vocabulary of "
            f"{c.vocab_size}, bfloat16 compute; B = {MODEL_S.batch}, L = {MODEL_S.length}.",
            "training: loss and gradients; whole step: with AdamW; decode: one token, weights cast before.",
            "moved: operands + results of every launch. launches: those of a loop once; started: times its trip count.",
            "CPU s: what the compilers took when the program was compiled, perhaps in an earlier run.",
        ]
    )


def _totals(programs: dict) -> str:
    rows = []
    for name, variants in programs.items():
        for variant, one in variants.items():
            rows.append([name, variant, *_figures(one), f"{one['cpu_seconds']:.1f}"])
        if peer := model_targets.PEER.get(name):
            figures = (peer.moved, peer.temporary, peer.launches)
            rows.append([name, "a peer's library", *("-" if f is None else str(f) for f in figures), "-", "-"])
    return table(["program", "operations", *_FIGURES, "CPU s"], rows, left=2)


def _figures(one: dict) -> list[str]:
    sizes = (f"{one[key] / 1e9:.3f}" for key in ("bytes_moved", "temporary_bytes"))
    return [*sizes, *(str(one[key]) for key in ("launches", "started"))]


def _lines(programs: dict) -> str:
    """The largest lines of each program, by what they move in training."""
    lines = {name: programs[name]["kernels"]["lines"] for name in _LINES_OF}
    training = lines["training"]
    chosen = dict.fromkeys([*list(training)[:_MOST], *(place for found in lines.values() for place in list(found)[:3])])
    rows = []
    for place in sorted(chosen, key=lambda place: -training.get(place, {"bytes": 0})["bytes"]):
        rows.append([place, *(cell for name in _LINES_OF for cell in _line(name, lines[name].get(place), programs))])
    others = {name: _sum(line for place, line in found.items() if place not in chosen) for name, found in lines.items()}
    rows.append(["all others", *(cell for name in _LINES_OF for cell in _line(name, others[name], programs))])
    header = ["GB moved by source line, kernels"]
    for name in _LINES_OF:
        header += [name, "share", *(["backward", "started"] if name == "training" else [])]
    return table(header, rows, left=1)


def _sum(lines) -> dict:
    total = {"bytes": 0, "backward": 0, "launches": 0}
    for line in lines:
        total = {key: total[key] + line[key] for key in total}
    return total


def _line(name: str, line: dict | None, programs: dict) -> list[str]:
    line = _sum([]) if line is None else line
    share = line["bytes"] / programs[name]["kernels"]["bytes_moved"]
    more = [f"{line['backward'] / 1e9:.2f}", str(line["launches"])] if name == "training" else []
    return [f"{line['bytes'] / 1e9:.2f}", f"{100 * share:.0f} %", *more]


def _layers(models: dict) -> str:
    rows = [
        [model, name, variant, *_figures(one)]
        for model, programs in models.items()
        for name, variants in programs.items()
        for variant, one in variants.items()
    ]
    shapes = "\n".join(f"{model}: {_describe(large(model, 1))}" for model in models)
    title = "One layer of larger models: what a model of two layers takes beyond one of one layer."
    return f"{title}\n{shapes}\n{table(['model', 'program', 'operations', *_FIGURES], rows, left=3)}"


def _describe(shape: Shape) -> str:
    c = shape.config
    return (
        f"dimension {c.model_dim}, {c.num_heads} heads, Dk = {c.head_dim}, Dv = {c.value_head_dim}, feed-forward "
        f"{c.ffn_hidden_dim}{' gated' if c.swiglu else ''}, chunks of {c.chunk_size}; B = {shape.batch}, "
        f"L = {shape.length}"
    )


def _targets(verdicts: list[dict]) -> str:
    return "\n".join(
        f"target {one['target']}: {'met' if one['met'] else 'MISSED'} ({one['figure']:.4g})" for one in verdicts
    )
