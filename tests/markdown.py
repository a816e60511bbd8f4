"""The README and the documents: where they are, and their fenced blocks."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMES = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", flags=re.DOTALL | re.MULTILINE)


def text(name: str) -> str:
    """A file."""
    return (ROOT / name).read_text()


def prose(name: str) -> str:
    """A file without its blocks."""
    return BLOCK.sub("", text(name))


def blocks(name: str, *languages: str) -> list[str]:
    """Fenced blocks of a file in one of these languages ("" for none)."""
    return [block for _, language, block in BLOCK.findall(text(name)) if language in languages]


def bash_lines(name: str) -> list[str]:
    """Lines of a file's bash blocks, without comments; those of one command as one."""
    text = "".join(re.sub(r" +#.*$", "", block, flags=re.MULTILINE) for block in blocks(name, "bash"))
    return re.sub(r"\\\n|\n {4,}(?=--)", " ", text).splitlines()


def sources(*packages: str) -> str:
    """All code of some packages."""
    return "\n".join(path.read_text() for package in packages for path in sorted((ROOT / package).rglob("*.py")))


def filled(name: str) -> Iterator[str]:
    """Lines of a file; an empty cell in the first two columns of a table is that of the row above."""
    above = ["", ""]
    for line in text(name).splitlines():
        cells = line.split("|")
        if len(cells) > 4 and not cells[0]:
            above = [cell if cell.strip() else old for cell, old in zip(cells[1:3], above, strict=True)]
            line = "|".join(["", *above, *cells[3:]])
        yield line
