"""Tables of these documents that are made from the code.

    python -m docs.tables            writes them
    python -m docs.tables --check    says which are not what the code gives, exit code 1

A table stands between the lines `<!-- table: NAME -->` and `<!-- end of table -->`. A test compares all of them.
"""

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import pallas_kernels
from bench import ops, tolerance
from bench.inspect.targets import find_target
from pallas_kernels import compile_for, explain
from pallas_kernels._architecture import Architecture
from pallas_kernels._registry import OPS
from pallas_kernels._settings import TARGETS
from tests import tolerance as tests_tolerance

FOLDER = Path(__file__).parent
_TABLE = re.compile(r"(<!-- table: ([\w ]+) -->\n)(.*?)(<!-- end of table -->)", flags=re.DOTALL)
_MOST = 2**21  # no size is tried beyond it


class Problem:
    """A small call of every op, of which one size or dtype is changed at a time."""

    def __init__(self, dtype: Any = jnp.float32, **sizes: int):
        self.dtype, self.sizes = dtype, sizes

    def size(self, name: str, usual: int) -> int:
        """The size that is changed, else the usual one."""
        return self.sizes.get(name, usual)

    def array(self, *shape: int, dtype: Any = None) -> jax.ShapeDtypeStruct:
        """An argument, in the dtype of activations unless said otherwise."""
        return jax.ShapeDtypeStruct(shape, self.dtype if dtype is None else dtype)

    def call(self, op: Callable, **changed: Any) -> pallas_kernels.Explanation:
        """What `explain` says of the op."""
        args, kwargs = getattr(self, op.__name__)()
        return explain(op, *args, **{**kwargs, **changed})

    def complex_ema(self):
        """Its arguments; so of the others."""
        batch, features, states = self.size("batch", 2), 8, self.size("states", 16)
        q = self.array(features, states, dtype=jnp.complex64)
        x = self.array(batch, self.size("length", 2), features)
        return (x, self.array(features, states, dtype=jnp.float32), q, q), {}

    def timestep_norm(self):
        x = self.array(self.size("batch", 2), self.size("length", 2), 2 * self.size("features", 4))
        return (x,), {"num_groups": 2}

    def chunked_attention(self):
        batch, length = self.size("batch", 2), self.size("length", 2)
        q = self.array(batch, length, 1, self.size("depth", 16))
        return (q, q, self.array(batch, length, 1, self.size("width", 16))), {"chunk_size": 32}

    def normalized_rotary(self):
        z = self.array(self.size("batch", 2), self.size("length", 2), 1, 2 * self.size("pairs", 8))
        parameter = self.array(2, 1, z.shape[3], dtype=jnp.float32)
        return (z, parameter, parameter), {"positions": self.array(z.shape[1], dtype=jnp.int32)}

    def fused_linear(self):
        features, outputs = 16, self.size("outputs", 32)
        x = self.array(1, self.size("length", 2), features)
        return (x, self.array(outputs, features, dtype=jnp.float32)), {}

    def feature_norm(self):
        return (self.array(2, self.size("length", 2), self.size("features", 4)),), {"centred": True}

    def round_weights(self):
        return (self.array(8, 16),), {}

    def linear_cross_entropy(self):
        tokens, vocabulary = self.size("length", 2), self.size("outputs", 32)
        counts = self.array(tokens, dtype=jnp.int32), self.array(tokens, dtype=jnp.float32)
        return (self.array(tokens, 16), self.array(vocabulary, 16), *counts), {}


# Op, size by name, what it counts, how much of that one of the size is, other sizes.
_LIMITS = (
    ("complex_ema", "states", "states of a feature", 1, {}),
    ("complex_ema", "batch", "rows of a batch", 1, {}),
    ("timestep_norm", "features", "features of a group", 1, {}),
    ("timestep_norm", "batch", "rows of a batch", 1, {}),
    ("chunked_attention", "depth", "head dim of queries and keys", 1, {}),
    ("chunked_attention", "width", "head dim of values", 1, {}),
    ("chunked_attention", "batch", "rows of a batch, times heads", 1, {}),
    ("normalized_rotary", "pairs", "head dim", 2, {}),
    ("normalized_rotary", "batch", "rows of a batch", 1, {}),
    ("feature_norm", "features", "features of a token", 1, {}),
    ("fused_linear", "outputs", "outputs of a layer, of 4096 tokens", 1, {"length": 4096}),
    ("linear_cross_entropy", "outputs", "words, of 4096 tokens", 1, {"length": 4096}),
)


def gpus() -> str:
    """The architectures that tiles are known for."""
    cards = {name: find_target(name).card for name, _ in _architectures()}
    rows = ((f"`{name}`", capability(name), cards[name], gpu.multiprocessors) for name, gpu in _architectures())
    return table(("`compile_for`", "compute capability", "tiles are chosen as on", "multiprocessors"), rows)


def dtypes() -> str:
    """What runs for each dtype of activations where a GPU is the target."""
    found = {}
    for op in OPS:
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            found[op, dtype] = "; ".join(sorted({_runs(op, dtype, target) for target in TARGETS}))
    rows = ((f"`{op.__name__}`", *(found[op, d] for d in (jnp.float32, jnp.bfloat16, jnp.float16))) for op in OPS)
    return table(("op", "float32", "bfloat16", "float16"), rows)


def limits() -> str:
    """The largest sizes that kernels take, found by asking them, and what they say beyond."""
    rows = []
    for name, size, what, times, others in _LIMITS:
        op = getattr(pallas_kernels, name)
        number = _largest(op, size, others)
        with compile_for(TARGETS[0]):
            reason = _reason(Problem(**others, **{size: number + 1}).call(op))
        rows.append((f"`{name}`", what, times * number, reason))
    return table(("op", "what is counted", "kernels take at most", "beyond that, `explain` says"), rows)


def left_to_xla() -> str:
    """What the reference runs though a GPU is there, and why."""
    norm, attention = pallas_kernels.timestep_norm, pallas_kernels.chunked_attention
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    cases = (
        ("one token, where nobody names an implementation", norm, {"length": 1}, {}),
        ("dropout of attention weights", attention, {}, {"dropout_rate": 0.1, "dropout_key": key}),
        ("softmax in another dtype", attention, {}, {"softmax_dtype": jnp.bfloat16}),
    )
    with compile_for("sm_90"):
        rows = [
            (what, f"`{op.__name__}`", _reason(Problem(**s).call(op, **more), chosen=True))
            for what, op, s, more in cases
        ]
    rows.insert(1, ("no GPU", "all", _reason(Problem().call(norm))))
    return table(("case", "op", "`explain` says"), rows)


def kernels() -> str:
    """The kernels of each op that have tiles of their own."""
    with compile_for("sm_90"):
        rows = [
            (
                f"`{op.__name__}`",
                ", ".join(f"`{launch.kernel}`" for launch in _row(Problem().call(op), "triton").launches),
            )
            for op in OPS
        ]
    return table(("op", "kernels"), rows)


def presets() -> str:
    """The problems that are compiled for every architecture."""
    rows = ((ops.of(spec).NAME, spec.name, ops.of(spec).describe(spec)) for spec in ops.PRESETS.values())
    return table(("op", "name", "problem"), ((f"`{op}`", name, problem) for op, name, problem in rows))


def policy() -> str:
    """The numbers of the tolerance policy, which is defined in bench/tolerance.py alone."""
    eps = "; ".join(f"{name} {_power(value)}" for name, value in tolerance.EPS.items() if value)
    rows = (
        (
            "a kernel's outputs, beside those of the reference of the same dtype",
            f"at most {tolerance.FACTOR:g} times its error",
        ),
        ("a kernel's gradients", f"at most {tolerance.GRADIENT_FACTOR:g} times its error"),
        ("floor of both", f"{tolerance.FLOOR_EPS:g} rounding units of the dtype"),
        ("rounding units", eps),
        ("the float32 reference itself", f"{tests_tolerance.REFERENCE_EPS:g} rounding units, relative RMS"),
        ("a whole float32 model", f"{tests_tolerance.MODEL_RELATIVE:g}, relative RMS"),
    )
    return table(("what", "bound of the error against float64"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "gpus": gpus,
    "dtypes": dtypes,
    "limits": limits,
    "left to xla": left_to_xla,
    "kernels": kernels,
    "presets": presets,
    "policy": policy,
}


def capability(target: str) -> str:
    """9.0 of "sm_90"."""
    number = int(target.removeprefix("sm_"))
    return f"{number // 10}.{number % 10}"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def renewed(text: str) -> str:
    """A document with its tables as the code gives them now."""
    return _TABLE.sub(lambda found: found[1] + TABLES[found[2]]() + found[4], text)


def stale() -> Iterator[tuple[Path, str]]:
    """Documents that are not what the code gives, and what they should be."""
    for path in sorted(FOLDER.rglob("*.md")):
        text = path.read_text()
        new = renewed(text)
        if new != text:
            yield path, new


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables, or with --check only compare them."""
    parser = argparse.ArgumentParser(
        prog="python -m docs.tables", description="Tables of docs/ that are made from the code."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a table is not up to date")
    options = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")  # the tables are the same where there is a GPU
    found = list(stale())
    for path, text in found:
        print(f"{path.relative_to(FOLDER.parent)}: {'not up to date' if options.check else 'written'}")
        if not options.check:
            path.write_text(text)
    return int(options.check and bool(found))


def _architectures() -> Iterator[tuple[str, Architecture]]:
    return ((name, Architecture.of(name)) for name in TARGETS)


def _runs(op: Callable, dtype: Any, target: str) -> str:
    with compile_for(target):
        try:
            rows = Problem(dtype).call(op).rows
        except TypeError:
            return "an error"
    (chosen,) = (row.implementation for row in rows if row.chosen)
    return {"triton": "kernels", "xla": "reference"}[chosen]


def _row(explanation: pallas_kernels.Explanation, implementation: str):
    (row,) = (row for row in explanation.rows if row.implementation == implementation)
    return row


def _reason(explanation: pallas_kernels.Explanation, chosen: bool = False) -> str:
    row = _row(explanation, "triton")
    assert row.reason, f"{explanation} does not refuse"
    assert not (chosen and row.chosen)
    return row.reason


def _largest(op: Callable, size: str, others: dict[str, int]) -> int:
    """By bisection on one architecture; the others have to say the same about that size and the next."""

    def taken(number: int, target: str = TARGETS[0]) -> bool:
        with compile_for(target):
            return _row(Problem(**others, **{size: number}).call(op), "triton").available

    least, most = 1, _MOST
    assert taken(least)
    assert not taken(most)
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if taken(middle) else (least, middle)
    assert all(taken(least, target) and not taken(most, target) for target in TARGETS)
    return least


def _power(value: float) -> str:
    mantissa, exponent = value.hex().split("p")
    assert float.fromhex(mantissa) == 1.0
    return f"2^{int(exponent)}"


if __name__ == "__main__":
    raise SystemExit(main())
