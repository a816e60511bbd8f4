"""A sequence over all devices of the suite gives what one device gives: logits, loss and gradients."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from megalodon_jax.baselines import Llama, LlamaConfig
from megalodon_jax.sequence_sharding import _power, over_sequence
from tests import models

DEVICES = jax.device_count()
LENGTH = DEVICES * 16  # two chunks for each device


def over_devices(f, out_specs):
    """`f(model of a stretch, ids, targets)` over the devices."""
    mesh = jax.make_mesh((DEVICES,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))
    tokens = P(None, "sequence")
    part = lambda model, *rows: f(over_sequence(model, "sequence"), *rows)  # noqa: E731
    specs = {"in_specs": (P(), tokens, tokens), "out_specs": out_specs}
    return jax.jit(jax.shard_map(part, mesh=mesh, **specs, check_vma=False))


def rows():
    windows = models.ids(2, LENGTH + 1)
    return windows[:, :-1], windows[:, 1:]


VARIANTS = [
    {},
    pytest.param({"scan_layers": True, "max_cache_len": 24}, marks=pytest.mark.thorough),
    pytest.param({"variant": "original"}, marks=pytest.mark.thorough),
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_logits_of_a_sequence_over_devices(changes):
    model = models.build(**changes)
    found = over_devices(lambda model, ids, _: model(ids)[0], P(None, "sequence"))(model, *rows())
    whole = eqx.filter_jit(lambda model: model(rows()[0])[0])(model)
    np.testing.assert_allclose(found, whole, rtol=2e-4, atol=2e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("variant", ["hf", "original"])
def test_gradients_of_a_sequence_over_devices(variant):
    def loss(model, ids, targets):
        return model.compute_loss(ids, targets, reduction="sum", shift=False)

    model = models.build(variant=variant)
    part = lambda *arguments: jax.lax.psum(jax.value_and_grad(loss)(*arguments), "sequence")  # noqa: E731
    found = over_devices(part, P())(model, *rows())
    whole = jax.jit(jax.value_and_grad(loss))(model, *rows())
    for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        scale = float(jnp.max(jnp.abs(theirs)))
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4 * scale)


def test_powers_of_a_long_memory():
    q = jnp.asarray([[0.99999 * np.exp(0.3j), 0.0, 1.0]], jnp.complex64)
    exact = np.asarray(q, np.complex128) ** 100_003
    np.testing.assert_allclose(_power(q, 100_003), exact, rtol=1e-6)
    slope = jax.grad(lambda q: jnp.real(_power(q, 100_003)[0, 0]))(q)
    np.testing.assert_allclose(slope[0, 0], 100_003 * exact[0, 0] / np.asarray(q)[0, 0], rtol=1e-5)


def test_other_models_are_refused(unhooked):
    config = LlamaConfig(vocab_size=32, dim=16, depth=1, heads=2, dim_head=8, max_seq_len=32)
    llama = Llama(config, key=jax.random.key(0))
    with pytest.raises(TypeError, match="MegalodonForCausalLM or MegalodonModel, got Llama"):
        over_sequence(llama, "sequence")


def test_what_a_stretch_does_not_take():
    model, (ids, _) = models.build(), rows()
    mask = jnp.arange(ids.shape[1])[None] > jnp.zeros((2, 1), jnp.int32)
    for f, message in (
        (lambda model, ids, _: model(ids[:, 1:])[0], "whole chunks of 8 tokens, got 15"),
        (lambda model, ids, _: model(ids, return_cache=True)[0], "no cache, mask or documents"),
        (lambda model, ids, _: model(ids, mask[:, :16])[0], "no cache, mask or documents"),
    ):
        with pytest.raises(ValueError, match=message):
            over_devices(f, P(None, "sequence")).lower(model, *rows())
