"""The Python blocks of the README and of the documents run."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(file: str, count: int) -> dict:
    """Names after the `count` blocks of a file."""
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(), flags=re.DOTALL)
    assert len(blocks) == count
    for block in blocks:
        exec(compile(block, file, "exec"), names)
    return names


@pytest.mark.thorough
def test_inference():
    names = run("docs/inference.md", 1)
    assert names["logits"].shape == (2, 256)
    assert names["more"].shape == (2, 5)
    assert names["state"].cache.final_norm.count.tolist() == [25, 21]


@pytest.mark.thorough
def test_weights():
    names = run("docs/weights.md", 1)
    assert names["model"].config == names["config"]
    weight = names["model"].model.embed.weight
    assert (weight == weight.astype("bfloat16").astype("float32")).all()


def test_readme(capsys):
    names = run("README.md", 3)
    assert names["logits"].shape == (1, 1, 256)
    assert names["state"].shape == (2, 8, 4)
    printed = capsys.readouterr().out
    assert "chosen" in printed
    assert "('timestep_norm_forward',)" in printed
