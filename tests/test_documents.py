"""The Python blocks of the source documents run as they stand, with only their `...` filled in."""

import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from megalodon_jax import MegalodonConfig, MegalodonForCausalLM
from tests import models

DOCUMENTS = Path(__file__).parents[2] / "shared" / "seeds"

pytestmark = pytest.mark.skipif(not DOCUMENTS.is_dir(), reason="the source documents are not beside the checkout")


def blocks(number: str) -> list[str]:
    (path,) = DOCUMENTS.glob(f"{number}_*.txt")
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


def run(block: str, names: dict, fill: str = "") -> None:
    assert ("..." in block) == bool(fill)
    exec(compile(block.replace("...", fill), "document", "exec"), names)


def test_interop(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.chdir(tmp_path)
    save, load = blocks("000")
    model = models.build()
    names = {"model": model, "config": model.config, "key": jax.random.key(1)}
    run(save, names)
    assert all(isinstance(value, torch.Tensor) for value in names["state_dict"].values())
    run(load, names)
    assert jnp.array_equal(names["model"](models.ids())[0], model(models.ids())[0])


@pytest.mark.thorough
def test_overview():
    quick_start, streaming, training = blocks("001")
    names = {}
    run(quick_start, names)
    assert names["logits"].shape == (1, 128, 32_000)
    run(streaming, names)
    assert names["next_logits"].shape == (1, 1, 32_000)
    assert names["new_cache"].layer_caches[0].attn.count.tolist() == [129]
    run(training, names)
    assert bool(jnp.isfinite(names["loss"]))
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(names["grads"]))


def test_dtypes():
    full, amp, cast, restore, audit, loop = blocks("004")
    names = {"MegalodonConfig": MegalodonConfig, "MegalodonForCausalLM": MegalodonForCausalLM, "jnp": jnp, "jax": jax}
    names["sizes"] = models.SIZES
    run(full, names, "**sizes")
    assert names["config"] == models.config()
    run(amp, names, "**sizes")
    assert names["config"] == models.config(compute_dtype=jnp.bfloat16)

    names["model"] = models.build()
    run(cast, names)
    assert names["model"].model.layers[0].attn.gamma.dtype == jnp.bfloat16
    with pytest.raises(AssertionError, match="cema"):
        run(audit, names)
    run(restore, names, "lambda x: x.astype(jnp.bfloat16), model")
    run(audit, names)
    assert names["model"].model.layers[0].attn.wz.weight.dtype == jnp.bfloat16

    run(loop, names, "**sizes")
    step, state = eqx.filter_jit(names["train_step"]), (names["model"], names["opt_state"])
    ids, losses = models.ids(), []
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by its integer step count
        for index in range(8):
            *state, loss = step(*state, ids, ids, jax.random.key(index))
            losses.append(float(loss))
    assert losses[-1] < losses[0]
