"""What a decoding step and a prefill compile to on CPU: no weight is transposed or copied, no callback is left."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from megalodon_jax import init_cache
from megalodon_jax.parameters import named_parameters
from tests import models


def compiled(batch: int, length: int):
    model = models.build(model_dim=128, value_dim=256, ffn_hidden_dim=192, vocab_size=384, num_layers=1)
    parameters, static = eqx.partition(model, eqx.is_array)
    cache = init_cache(model.config, batch, allocate_kv=True, allocate_norm=True, allocate_ema=True)
    run = lambda parameters, ids, cache: eqx.combine(parameters, static)(ids, cache=cache, return_cache=True)  # noqa: E731
    ids = jnp.ones((batch, length), jnp.int32)
    text = jax.jit(run, donate_argnums=2).lower(parameters, ids, cache).compile().as_text()
    assert text is not None
    return model, text


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (2, 1), (2, 9)])
def test_no_weight_is_moved(batch, length):
    model, text = compiled(batch, length)
    weights = {a.shape for name, a in named_parameters(model).items() if a.ndim == 2 and "cema" not in name}
    assert len(weights) > 3
    moved = re.findall(r"= f32\[(\d+),(\d+)\]\S* (?:copy|transpose)\(", text)
    assert not {(int(a), int(b)) for a, b in moved} & (weights | {shape[::-1] for shape in weights})
    assert "callback" not in text
