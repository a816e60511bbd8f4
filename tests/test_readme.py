"""The Python blocks of the README run."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks(capsys):
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "README", "exec"), names)
    assert names["logits"].shape == (1, 1, 256)
    assert names["state"].shape == (2, 8, 4)
    printed = capsys.readouterr().out
    assert "chosen" in printed
    assert "('timestep_norm_forward',)" in printed
