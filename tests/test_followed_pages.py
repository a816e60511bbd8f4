"""The pages that a user follows from top to bottom: their commands run, in this order, in one empty folder.

Steps and models are cut to what takes seconds. Commands that stand for others (CONFIG, IN) or install are left out.
"""

import gzip
import re
import shlex

import pytest

from megalodon_jax.cli.main import main
from tests.markdown import blocks

SMALL = ["steps=2", "batch_size=2", "accumulate=1", "evaluation.windows=2", "data.sequence_length=32"]
CUTS = {  # what follows these words of a command
    "demo": ["--steps", "2"],
    "train --config test": SMALL,
    "train --config megalodon_multichunk_512": [
        *SMALL,
        "data.split=[0.8, 0.1, 0.1]",
        "samples.prompt_length=8",
        "samples.length=8",
        "megalodon={num_layers: 1, model_dim: 32, z_dim: 16, value_dim: 32, ffn_hidden_dim: 32, chunk_size: 16}",
    ],
}


def followed(page: str) -> list[list[str]]:
    """Words behind `python -m megalodon_jax` of each command of a page, in order."""
    lines = "\n".join(blocks(page, "bash")).splitlines()
    own = [re.sub(r" +#.*$", "", line) for line in lines if line.startswith("python -m megalodon_jax ")]
    return [shlex.split(line)[3:] for line in own if not re.search(r"\b[A-Z]{2,}\b", line)]


def cut(words: list[str]) -> list[str]:
    """The command made short."""
    for start, changes in CUTS.items():
        count = len(start.split())
        if words[:count] == start.split():
            return [*words[:count], *changes, *words[count:]]
    return words


@pytest.mark.thorough
def test_pages_are_followed(here, capsys):
    text = b"The quick brown fox jumps over the lazy dog, and the dog sleeps. " * 200
    (here / "input.txt").write_bytes(text)
    (here / "enwik8.gz").write_bytes(gzip.compress(text))
    ran = []
    for page in ("quickstart", "inference", "nanogpt", "training"):
        for words in followed(f"docs/{page}.md"):
            code = main(cut(words))
            told = capsys.readouterr()
            assert code == 0 or words[0] == "selftest", (words, told.err)
            assert words[0] != "generate" or "The" in told.out
            ran.append(words[0])
    kinds = ["doctor", "demo", "generate", "selftest", "generate", "train", "generate"]
    assert ran == [*kinds, "train", "train", "plot", "generate"]
    assert (here / "curves.png").read_bytes().startswith(b"\x89PNG")
