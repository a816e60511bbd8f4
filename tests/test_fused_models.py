"""Models whose linear layers and loss are fused, by interpreted kernels: the default's values and gradients, whatever
else is asked of the model.
"""

import equinox as eqx
import jax
import numpy as np
import pytest

from megalodon_jax import generate, pad_batch
from megalodon_jax.checkpoint import load_checkpoint, save_checkpoint
from megalodon_jax.parameters import named_parameters
from pallas_kernels import use_implementation
from tests import cases, models
from tests.tolerance import assert_close

pytestmark = pytest.mark.thorough

KERNELS = dict.fromkeys(("fused_linear", "round_weights", "linear_cross_entropy"), "triton_interpret")
IDS = models.ids()
DROPOUT = {"dropout": 0.2, "hidden_dropout": 0.3}
PACKED = cases.tokens(cases.rng(3), "segments", *IDS.shape)

# What is changed of the model, and how its loss is called.
CASES = {
    "dropout": (DROPOUT, {"deterministic": False}),
    "hidden dropout, swiglu, documents": (
        {"hidden_dropout": 0.3, "swiglu": True},
        {"deterministic": False, "segment_ids": PACKED["segment_ids"]},
    ),
    "outer dropout, mask": ({"dropout": 0.2}, {"deterministic": False, "attention_mask": PACKED["mask"]}),
    "original": ({"variant": "original", "swiglu": True, "rescale_nffn": True}, {}),
    "original, attention dropout": (
        DROPOUT | {"variant": "original", "attention_dropout": 0.2, "attention_dropout_mode": "dropkey"},
        {"deterministic": False},
    ),
    "scanned": ({"scan_layers": True, "num_layers": 2}, {}),
    "scanned, made again": ({"scan_layers": True, "num_layers": 2, "remat": "block"}, {}),
    "results of kernels kept": ({"remat": "kernels"}, {"segment_ids": PACKED["segment_ids"]}),
    "made again, dropout": (DROPOUT | {"remat": "block", "swiglu": True}, {"deterministic": False}),
}


def gradients(gemm_backend: str, changes: dict, call: dict) -> dict:
    """Loss, formed in chunks of 16 tokens, and its gradients by name."""
    model = models.build(gemm_backend=gemm_backend, **{"num_layers": 1} | changes)
    loss = lambda m: m.compute_loss(IDS, IDS, loss_chunk_size=16, key=jax.random.key(1), **call)  # noqa: E731
    value, found = eqx.filter_jit(eqx.filter_value_and_grad(loss))(model)
    return {"loss": value} | named_parameters(found)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients(case):
    expected = gradients("default", *CASES[case])
    with use_implementation(**KERNELS):
        found = gradients("fused", *CASES[case])
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_close(name, value, expected[name], units=300)


@pytest.mark.parametrize("variant", ["hf", "original"])
def test_generation(variant):
    """Of prompts of different lengths, then another turn."""
    prompts, mask = pad_batch([np.asarray(row)[:size].tolist() for row, size in zip(IDS, (9, 14), strict=True)])

    def generated(gemm_backend: str):
        model = models.build(num_layers=1, gemm_backend=gemm_backend, variant=variant)
        first, cache, _ = generate(model, prompts, 4, temperature=0.0, attention_mask=mask, return_cache=True)
        second, state, _ = generate(model, IDS[:, :5], 3, temperature=0.0, cache=cache, return_state=True)
        return first, second, state.logits

    *expected, logits = generated("default")
    with use_implementation(**KERNELS):
        *found, with_kernels = generated("fused")
    for tokens, those in zip(found, expected, strict=True):
        np.testing.assert_array_equal(tokens, those)
    assert_close("logits", with_kernels, logits, units=300)


def test_a_saved_model_is_the_same(tmp_path):
    model = models.build(num_layers=1, gemm_backend="fused", variant="original")
    save_checkpoint(model, tmp_path / "model")
    loaded = load_checkpoint(tmp_path / "model")
    assert loaded.config == model.config
    models.assert_same(loaded, model)
    with use_implementation(**KERNELS):
        run = eqx.filter_jit(lambda model: model(IDS)[0])
        np.testing.assert_array_equal(run(loaded), run(model))
