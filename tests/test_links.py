"""Links of the documents lead somewhere, their tables are what the code gives, and they name no path of a machine."""

import re
from xml.etree import ElementTree

import pytest

import docs.tables
from pallas_kernels._settings import OPS
from tests.markdown import NAMES, ROOT, filled, prose, sources, text


def anchors(name: str) -> set[str]:
    """Of the headings of a file, as GitHub and mkdocs make them."""
    heads = re.findall(r"^#+ (.*)$", prose(name), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", NAMES)
def test_links(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(name)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        path = ((ROOT / name).parent / file).resolve() if file else ROOT / name
        assert path.exists(), f"{name} links to {target}"
        assert not anchor or anchor in anchors(str(path.relative_to(ROOT))), f"{name} links to {target}"


def test_tables_are_what_the_code_gives():
    assert not [str(path) for path, _ in docs.tables.stale()], "run python -m docs.tables"


def test_environment():
    """Every variable of ours that the code reads is in the table, and every op in it."""
    page = text("docs/environment.md")
    code = sources("pallas_kernels", "megalodon_jax", "bench")
    read = set(re.findall(r"\"((?:PALLAS_KERNELS|MEGALODON)_[A-Z_]*[A-Z])\"", code))
    assert read == set(re.findall(r"^\| `((?:PALLAS_KERNELS|MEGALODON)\w+)`", page, flags=re.MULTILINE))
    assert all(f"`{op}`" in page for op in OPS)


@pytest.mark.parametrize("name", NAMES)
def test_no_path_of_a_machine(name):
    assert not re.findall(r"(?<![\w.])/(?:work|tmp|home|root|Users|opt)/", text(name))


def test_numbers_of_the_readme_are_in_the_page_beside_them():
    """On a line (of tables: with what its empty cells continue) that has the first word of the row, name and number."""
    row = r"^\| (.*) \| (.*) \| `(.*)` \| .*\((docs/[\w/]+\.md)(?:#[\w-]+)?\) \|$"
    rows = re.findall(row, text("README.md"), flags=re.MULTILINE)
    assert len(rows) >= 7
    for what, figures, command, page in rows:
        assert re.search(rf"{re.escape(command)}(\n|`| --out)", text(page)), f"{page} has nothing of {command}"
        named = re.findall(r"([^\d]+) ([\d.]+)(?:, |$)", figures)
        assert ", ".join(f"{name} {number}" for name, number in named) == figures
        for name, number in named:
            words = (re.split(r"[ ,:]", what)[0], name, number)
            printed = ".*".join(rf"(?<![\w.-]){re.escape(word)}(?![\w.-])" for word in words)
            assert any(re.search(printed, line) for line in filled(page)), f"{page}: {what}: {name} {number}"


def test_pictures():
    """Each is well-formed, says what it shows, and is in a page."""
    pictures = sorted(ROOT.glob("docs/**/*.svg"))
    assert pictures
    for picture in pictures:
        root = ElementTree.parse(picture).getroot()
        assert {"title", "desc"} <= {element.tag.rpartition("}")[2] for element in root}
        assert any(f"({picture.name})" in text(name) for name in NAMES if name.startswith("docs/ops"))
