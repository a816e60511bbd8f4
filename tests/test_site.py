"""The documents as a site: every page in the navigation, every link and anchor leads somewhere."""

import re
import subprocess
import sys

import pytest

from tests.markdown import NAMES, ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (extra docs)")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not built.returncode, built.stderr
    return folder


def test_every_page_is_there(site):
    pages = {str(page.relative_to(site).with_suffix(".md")) for page in site.rglob("*.html")}
    assert {name.removeprefix("docs/") for name in NAMES if name.startswith("docs/")} <= pages
    assert not list(site.rglob("*.py"))


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert not re.findall(r'(?:src|<link[^>]* href)="(?:https?:)?//[^"]*"', page.read_text()), page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?(?:https?:)?//", sheet.read_text()), sheet


def test_links_to_code_are_its_name(site):
    text = (site / "training.html").read_text()
    assert "<code>megalodon_jax/training/config.py</code>" in text
    assert "../megalodon_jax" not in text
