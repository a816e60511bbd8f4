"""Markdown that can be read as it is."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table, padded so that it can be read as it is; columns are right-aligned but for the first `left`."""
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]
    align = [str.ljust if column < left else str.rjust for column in range(len(widths))]
    line = lambda cells: "| " + " | ".join(put(c, w) for put, c, w in zip(align, cells, widths, strict=True)) + " |"  # noqa: E731
    rule = ["-" * width if column < left else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])
