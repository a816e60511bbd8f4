"""The Python blocks of the README and of the documents run, one after the other, with each other's names.

Documents are found, not listed. One that takes more than a few seconds is `thorough`.
"""

import re

import pytest

from tests.markdown import NAMES, blocks, sources, text

QUICK = {
    "README.md", "docs/export.md", "docs/jax_and_torch.md", "docs/tuning.md", "docs/weights.md",
    "docs/ops/chunked_attention.md", "docs/ops/feature_norm.md", "docs/ops/fused_linear.md",
    "docs/ops/normalized_rotary.md",
}  # fmt: skip


def marked(name: str):
    return pytest.param(name, marks=() if name in QUICK else pytest.mark.thorough)


# What is expected of the names that a file's blocks leave.


def readme(names, printed):
    assert names["logits"].shape == (1, 1, 256)
    assert names["state"].shape == (2, 8, 4)
    assert "chosen" in printed
    assert "('timestep_norm_forward',)" in printed


def inference(names, printed):
    assert names["logits"].shape == (2, 256)
    assert names["more"].shape == (2, 5)
    assert names["state"].cache.final_norm.count.tolist() == [25, 21]


def weights(names, printed):
    assert names["model"].config == names["config"]
    weight = names["model"].model.embed.weight
    assert (weight == weight.astype("bfloat16").astype("float32")).all()


def baselines(names, printed):
    assert names["logits"].shape == (1, 17, 256)
    assert names["text"].shape == (1, 25)
    assert names["short"].config.block_size == 32


def training(names, printed):
    assert names["loss"].shape == ()
    assert names["gradients"].model.embed.weight.shape == (256, 64)


def quickstart(names, printed):
    assert names["losses"][-1] < 0.9 * names["losses"][0]
    assert names["tokens"].shape == (1, 36)


def drop_in(names, printed):
    assert names["losses"][-1] < 0.1 * names["losses"][0]
    assert names["errors"][-1] < 0.3 * names["errors"][0]
    for kernel in ("complex_ema_backward", "timestep_norm_backward", "chunked_attention_dv"):
        assert kernel in printed
    kept = re.findall(r'checkpoint_name\(\w+, "(\w+)"', sources("pallas_kernels"))
    assert kept
    assert all(f"`{name}`" in text("docs/drop_in.md") for name in kept)


EXPECTED = {
    "README.md": readme,
    "docs/baselines.md": baselines,
    "docs/drop_in.md": drop_in,
    "docs/inference.md": inference,
    "docs/quickstart.md": quickstart,
    "docs/training.md": training,
    "docs/weights.md": weights,
}


@pytest.mark.parametrize("name", [marked(name) for name in NAMES if blocks(name, "python")])
def test_python(name, capsys):
    code = blocks(name, "python")
    if any("import torch" in block for block in code):
        pytest.importorskip("torch", reason="torch is not installed")
    if any(".serialize(" in block for block in code):
        pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    names = {"__name__": "document"}
    for block in code:
        exec(compile(block, name, "exec"), names)
    if name in EXPECTED:
        EXPECTED[name](names, capsys.readouterr().out)


def test_every_expectation_is_of_a_document():
    assert set(EXPECTED) | QUICK <= set(NAMES)
