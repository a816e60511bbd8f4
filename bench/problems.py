"""Problems of the ops by what a user calls them, and as short as the float64 oracle needs them."""

import math
from collections.abc import Iterable
from dataclasses import fields, replace
from difflib import get_close_matches

from bench import ops
from bench.ops import AttentionSpec, Spec, Titled

ORACLE = 2**26  # numbers in an array of the float64 oracle, which keeps every state and every score


def chosen(known: Titled, names: Iterable[str], where: str = "") -> Titled:
    """The specs of these names, each by its title.

    Args:
        where: what to say of the known ones where a name is not among them.

    Raises:
        ValueError: there is no such spec.
    """
    found: Titled = {}
    for name in names:
        matching = ops.find(known, name)
        if not matching:
            raise ValueError("; ".join(filter(None, [f"no spec {name!r}", where, *_near(known, name)])))
        found |= matching
    return found


def _near(known: Titled, name: str) -> list[str]:
    """The names closest to one that is unknown, and the ops."""
    of_ops = dict.fromkeys(ops.of(spec).NAME for spec in known.values())
    near = get_close_matches(name, dict.fromkeys([*known, *(spec.name for spec in known.values()), *of_ops]), n=4)
    return [*([f"close to it: {', '.join(map(repr, near))}"] if near else []), f"all of an op: {', '.join(of_ops)}"]


def shortened(spec: Spec) -> Spec:
    """One row of the batch, half as many heads, then half as long, until the float64 oracle has room for it."""
    if any(field.name == "batch" for field in fields(spec)):
        spec = replace(spec, batch=1)  # type: ignore[call-arg]
    while isinstance(spec, AttentionSpec) and spec.heads > 1 and _numbers(spec) > ORACLE:
        spec = replace(spec, heads=spec.heads // 2)
    while spec.length > 1 and _numbers(spec) > ORACLE:
        spec = replace(spec, length=spec.length // 2)
    return spec


def _numbers(spec: Spec) -> int:
    scores = spec.heads * spec.length**2 if isinstance(spec, AttentionSpec) else 0
    return max(scores, getattr(spec, "states", 1) * max(math.prod(array.shape) for array in spec.arrays().values()))
