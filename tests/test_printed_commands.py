"""Commands that the README and the documents print are understood: their words are parsed, and nothing runs."""

import argparse
import itertools
import re
import shlex
import tomllib
from collections.abc import Iterator
from unittest import mock

import pytest

import bench.__main__
import bench.ops
import docs.tables
import megalodon_jax.cli.main
from tests.markdown import NAMES, ROOT, bash_lines, blocks, prose, text


class Understood(Exception):
    """argparse took the arguments; nothing runs."""


def arguments_are_understood(run, arguments: list[str]) -> None:
    original = argparse.ArgumentParser.parse_args

    def parse(self, *args, **kwargs):
        original(self, *args, **kwargs)
        raise Understood

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse), pytest.raises(Understood):
        run(arguments)


MODULES = {
    "bench": bench.__main__.main,
    "docs.tables": docs.tables.main,
    "megalodon_jax": megalodon_jax.cli.main.main,
}
ELSEWHERE = {"cd", "git", "mkdocs", "ruff", "pyright"}  # programs whose arguments nothing here knows
ASSIGNMENT = re.compile(r"[A-Z_]+=.*", flags=re.DOTALL)


def command_lines(name: str) -> Iterator[str]:
    """Commands of a file: lines of its bash blocks, those behind a `$` where output is shown, those in prose."""
    yield from bash_lines(name)
    for block in blocks(name, ""):
        yield from re.findall(r"^\$ (.*)$", block, flags=re.MULTILINE)
    if name != "CHANGELOG.md":  # which is also of what was
        yield from (" ".join(line.split()) for line in re.findall(r"`((?:python -m|pytest|make) [^`]*)`", prose(name)))


def commands() -> list[tuple[str, str]]:
    found = itertools.chain.from_iterable(((name, line.strip()) for line in command_lines(name)) for name in NAMES)
    return sorted({(name, line) for name, line in found if line})


@pytest.mark.parametrize(("name", "line"), commands())
def test_command(name, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()  # an option that names a file to write wants a folder that is there
    line = re.sub(r"\[([^][ ]* ?)+\.\.\.\]", "", line)  # optional words of a synopsis
    words = shlex.split(line)
    while words and ASSIGNMENT.fullmatch(words[0]):
        words.pop(0)
    if words[:1] == ["export"]:
        assert all(ASSIGNMENT.fullmatch(word) for word in words[1:])
        return
    if words and words[0] == "srun":
        words.pop(0)
    if not words or words[0] in ELSEWHERE:
        return
    python = words[0] == "python" and words[1] == "-m"
    program, rest = (words[2], words[3:]) if python else (words[0], words[1:])
    if program in MODULES and len(rest) <= 1:  # the name of a command alone
        with pytest.raises(SystemExit, match="0"):
            MODULES[program]([*rest, "--help"])
    elif program in MODULES:
        arguments_are_understood(MODULES[program], rest)
        if "--spec" in rest:
            names = itertools.takewhile(lambda word: not word.startswith("--"), rest[rest.index("--spec") + 1 :])
            assert all(bench.ops.find(bench.ops.PRESETS | bench.ops.PARITY | bench.ops.SHORTFALLS, n) for n in names)
    elif program == "pip":
        assert rest[0] == "install"
        for extra in re.findall(r"\.\[([\w,]+)\]", line):
            assert set(extra.split(",")) <= set(project()["project"]["optional-dependencies"])
    elif program == "make":
        targets = set(re.findall(r"^([\w-]+):", text("Makefile"), flags=re.MULTILINE))
        assert {word for word in rest if "=" not in word} <= targets
    elif program == "pytest":
        markers = {marker.split(":")[0] for marker in project()["tool"]["pytest"]["ini_options"]["markers"]}
        for option, value in itertools.pairwise(rest):
            assert option != "-m" or set(re.findall(r"\w+", value)) - {"or", "and", "not"} <= markers
        assert all((ROOT / word.split("::")[0]).exists() for word in rest if word.startswith(("tests", "bench")))
    else:
        pytest.fail(f"{name}: nothing here knows how to check {line!r}")


def project() -> dict:
    return tomllib.loads(text("pyproject.toml"))
