"""The smallest language model, for tests of what trains models: it compiles in no time."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax.training import loop, models
from megalodon_jax.training.packing import IGNORED


class Bigram(eqx.Module):
    """The logits of what follows a token are a row of a matrix. With a key its losses are noisy, as with dropout."""

    weight: jax.Array

    def compute_loss(
        self, input_ids, labels, *, reduction, return_valid_count, shift, segment_ids, deterministic=True, key=None
    ):
        assert (reduction, return_valid_count, shift) == ("sum", True, False)
        valid = labels != IGNORED
        logits = jax.nn.log_softmax(self.weight[input_ids])
        losses = -jnp.take_along_axis(logits, jnp.where(valid, labels, 0)[..., None], axis=-1)[..., 0]
        noise = 0.0 if deterministic or key is None else 0.1 * jax.random.normal(key, losses.shape)
        return jnp.sum(jnp.where(valid, losses * (1 + noise), 0.0)), jnp.sum(valid, dtype=jnp.int32)


def bigram(vocabulary: int = 16) -> Bigram:
    return Bigram(jnp.asarray(np.random.default_rng(0).normal(size=(vocabulary, vocabulary)), jnp.float32))


def train_bigrams(monkeypatch: pytest.MonkeyPatch, kind: type[Bigram] = Bigram) -> None:
    """Runs train one, whatever model they ask for. Checkpoints of a model hold none."""
    monkeypatch.setattr(models, "build", lambda config, key: kind(bigram(256).weight))
    monkeypatch.setattr(loop, "save_checkpoint", lambda model, folder: None)
