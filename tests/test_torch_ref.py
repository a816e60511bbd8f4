"""The model with its weights in PyTorch: in megalodon-hf where it is installed (`-m torch_ref`), in our oracle always.

megalodon-hf computes in float32, the oracle here in float64.
"""

import dataclasses
import importlib
import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax.convert import convert_jax_to_torch
from tests import kernel_parity, models
from tests.streams import stream
from tests.tolerance import MODEL_RELATIVE, errors

torch = pytest.importorskip("torch", reason="torch is not installed")

VARIANTS = {
    "default": {},
    "everything that megalodon-hf has": {
        "swiglu": True, "rescale_nffn": True, "scale_emb": True, "rope_base": 500.0, "norm_num_groups": 8,
    },
    "no affine": {"norm_affine": False},
}  # fmt: skip
PIECES = (3, 5, 1, 1, 8, 3)


class Oracle:
    """Our PyTorch model behind the calls of these tests."""

    def __init__(self, config):
        from reference import oracle_torch

        self.model = oracle_torch.MegalodonForCausalLM(oracle_torch.OracleConfig.from_any(config), dtype=torch.float64)

    def logits(self, ids, mask=None):
        return self.model(ids, mask)[0]

    def loss(self, ids, labels):
        return self.model.loss(ids, labels)

    def step(self, ids, past):
        return self.model(ids, past_key_values=past, use_cache=True)


class MegalodonHf:
    """megalodon-hf behind the same calls."""

    def __init__(self, config):
        megalodon = importlib.import_module("megalodon")
        known = inspect.signature(megalodon.MegalodonConfig).parameters
        fields = {name: value for name, value in dataclasses.asdict(config).items() if name in known}
        self.model = megalodon.MegalodonForCausalLM(megalodon.MegalodonConfig(**fields)).eval()

    def logits(self, ids, mask=None):
        mask = None if mask is None else mask.long()
        return self.model(input_ids=ids, attention_mask=mask, use_cache=False, return_dict=True).logits

    def loss(self, ids, labels):
        return self.model(input_ids=ids, labels=labels, use_cache=False, return_dict=True).loss

    def step(self, ids, past):
        out = self.model(input_ids=ids, past_key_values=past, use_cache=True, return_dict=True)
        return out.logits, out.past_key_values


pytestmark = [
    pytest.mark.parametrize(
        "kind",
        # What megalodon-hf and transformers warn of is theirs.
        [Oracle, pytest.param(MegalodonHf, marks=[pytest.mark.torch_ref, pytest.mark.filterwarnings("default")])],
    ),
    pytest.mark.parametrize("variant", kernel_parity.first(list(VARIANTS), 1)),
]


def pair(kind, variant):
    """The JAX model and its twin, loaded strictly."""
    model = models.build(**VARIANTS[variant])
    twin = kind(model.config)
    twin.model.load_state_dict(convert_jax_to_torch(model), strict=True)
    return model, twin


def tokens(**kwargs):
    ids = models.ids(**kwargs)
    return ids, torch.tensor(np.asarray(ids), dtype=torch.long)


@torch.no_grad()
def test_logits_and_loss(kind, variant):
    model, twin = pair(kind, variant)
    ids, given = tokens()
    assert errors(model(ids)[0], twin.logits(given).numpy())[0] < MODEL_RELATIVE
    labels = np.asarray(ids).copy()
    labels[:, 3:6] = -100
    loss = twin.loss(given, torch.tensor(labels, dtype=torch.long)).item()
    assert abs(float(model.compute_loss(ids, jnp.asarray(labels))) - loss) < MODEL_RELATIVE * loss


@torch.no_grad()
def test_padding_at_the_end(kind, variant):
    model, twin = pair(kind, variant)
    ids, given = tokens()
    mask = np.ones(ids.shape, bool)
    mask[1, 13:] = False
    found, _ = model(ids, jnp.asarray(mask))
    truth = twin.logits(given, torch.tensor(mask)).numpy()
    assert errors(np.asarray(found)[mask], truth[mask])[0] < MODEL_RELATIVE


@torch.no_grad()
def test_streaming_in_pieces(kind, variant):
    """The twin in pieces against the model in one call, and the other way round."""
    model, twin = pair(kind, variant)
    ids, given = tokens()
    past, found = None, []
    for piece in torch.split(given, PIECES, dim=1):
        logits, past = twin.step(piece, past)
        found.append(logits)
    assert errors(model(ids)[0], torch.cat(found, dim=1).numpy())[0] < MODEL_RELATIVE
    assert errors(stream(model, ids, PIECES)[0], twin.logits(given).numpy())[0] < MODEL_RELATIVE
