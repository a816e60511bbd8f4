"""The pages that a user follows from top to bottom: their commands run, in this order, in one empty folder.

Steps and models are cut to what takes seconds. Left out are installations, commands that stand for others (CONFIG) and
the parity with PyTorch, which has tests of its own.
"""

import gzip
import re
import shlex

import pytest

from megalodon_jax.cli.main import main
from tests.markdown import bash_lines

SMALL = ["batch_size=2", "accumulate=1", "evaluation.windows=2", "data.sequence_length=32"]
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
    left = re.compile("pip install|python -m bench training|.*--config CONFIG")
    words = [shlex.split(line) for line in bash_lines(page) if line and not left.match(line)]
    assert all(command[:3] == ["python", "-m", "megalodon_jax"] for command in words)
    return [command[3:] for command in words]


def cut(words: list[str]) -> list[str]:
    """The command made short; what goes on from a run of one step takes a second one."""
    for start, changes in CUTS.items():
        count = len(start.split())
        if words[:count] == start.split():
            steps = [f"steps={1 + ('--resume' in words)}"] if words[0] == "train" else []
            return [*words[:count], *steps, *changes, *words[count:]]
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
            if words[0] == "selftest":
                assert (code, "GPU" in told.err) == (2, True)
                continue
            assert code == 0, (words, told.err)
            if words[0] == "generate":
                assert len(told.out.encode()) > 30  # more than the prompt
            ran.append(words[0])
    generated = ["doctor", "demo", "generate", "generate", "train", "generate"]
    assert ran == [*generated, "train", "train", "plot", "generate"]
    assert (here / "curves.png").read_bytes().startswith(b"\x89PNG")
