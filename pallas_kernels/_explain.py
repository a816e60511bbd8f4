"""`explain`: which implementation of an op would run for these arguments, and why the others would not."""

from dataclasses import dataclass

from pallas_kernels._dispatch import KernelUnavailable
from pallas_kernels._registry import OPS
from pallas_kernels._settings import current
from pallas_kernels._tiles import Launch


@dataclass(frozen=True)
class Row:
    """One implementation of the op: would it run, is it the one chosen, if it refuses why, and what it launches."""

    implementation: str
    available: bool
    chosen: bool
    reason: str
    launches: tuple[Launch, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """The rows of `explain`; `str()` gives a table."""

    op: str
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        lines = [f"{self.op}"]
        for row in self.rows:
            verdict = "chosen" if row.chosen else ("available" if row.available else "refused")
            lines.append(f"  {row.implementation:<17} {verdict:<10} {row.reason}".rstrip())
            lines.extend(f"    {launch}" for launch in row.launches)
        return "\n".join(lines)


def explain(op, *args, implementation=None, **kwargs) -> Explanation:
    """Table of every implementation of `op` for these arguments, without running anything.

    Args:
        op: one of the public ops, `pallas_kernels.complex_ema` for example.
        *args: the arguments the op would be called with; `jax.ShapeDtypeStruct` is enough for arrays.
        implementation: as in the call.
        **kwargs: the keyword arguments the op would be called with.

    Raises:
        ValueError, TypeError: `op` is not one of the ops, or the op itself would reject these arguments.
    """
    if op not in OPS:
        names = ", ".join(o.name for o in OPS.values())
        raise ValueError(f"explain: op must be one of the functions {names}, got {op!r}.")
    entry = OPS[op]
    entry.check(*args, **kwargs)
    try:
        chosen = entry.choose(implementation, *args, **kwargs).name
    except KernelUnavailable:
        chosen = None
    present, settings = {i.name: i for i in entry.implementations}, current()
    rows = (
        Row(name, False, False, refusal)
        if refusal
        else Row(
            name,
            True,
            name == chosen,
            "" if name == chosen or present[name].pays(*args, **kwargs) else "for one token xla is the better one",
            present[name].launches(settings, *args, **kwargs),
        )
        for name, refusal in entry.refusals(*args, **kwargs).items()
    )
    return Explanation(entry.name, tuple(rows))
