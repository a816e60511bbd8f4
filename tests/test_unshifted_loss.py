"""compute_loss(shift=False): labels that are the targets already, as in windows of one token more than go in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import models

WINDOWS = models.ids(2, 22)
# Three documents in the first row; the second one ends in padding.
SEGMENTS = jnp.asarray([[1] * 5 + [2] * 9 + [3] * 8, [4] * 15 + [0] * 7], jnp.int32)
# What the shift ignores: targets that start a document, and padding.
STARTS = jnp.concatenate([SEGMENTS[:, 1:] != SEGMENTS[:, :-1], jnp.zeros((2, 1), bool)], axis=1)[:, :-1]
LABELS = jnp.where(STARTS | (SEGMENTS[:, 1:] == 0), -100, WINDOWS[:, 1:])


def results(inputs, labels, reduction, **options):
    """Loss, how many targets count, and the gradient of the losses' sum."""

    def total(model):
        loss, count = model.compute_loss(inputs, labels, reduction=reduction, return_valid_count=True, **options)
        return jnp.sum(loss), (loss, count)

    (_, found), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(models.build(num_layers=1))
    return *found, gradient


@pytest.mark.parametrize(
    ("reduction", "packed", "chunk"),
    [
        ("mean", True, 9),
        pytest.param("mean", True, None, marks=pytest.mark.thorough),
        *(pytest.param("mean", False, chunk, marks=pytest.mark.thorough) for chunk in (None, 9)),
        *(pytest.param("none", packed, 9, marks=pytest.mark.thorough) for packed in (False, True)),
        pytest.param("sum", True, 9, marks=pytest.mark.thorough),
    ],
)
def test_windows_give_what_the_shift_gives(reduction, packed, chunk):
    """The model is causal, so the last token of a window changes nothing by being left out of the inputs."""
    segments = SEGMENTS if packed else None
    shifted = results(WINDOWS, WINDOWS, reduction, segment_ids=segments, loss_chunk_size=chunk)
    found = results(
        WINDOWS[:, :-1], LABELS if packed else WINDOWS[:, 1:], reduction,
        segment_ids=SEGMENTS[:, :-1] if packed else None, loss_chunk_size=chunk, shift=False,
    )  # fmt: skip
    assert found[0].shape == ((2, 21) if reduction == "none" else ())
    assert int(found[1]) == int(shifted[1]) == (33 if packed else 42)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(shifted), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def test_the_label_that_ends_a_document_counts_and_padding_does_not():
    model, inputs = models.build(num_layers=1), WINDOWS[:, :-1]
    ends = jnp.full_like(inputs, 7)
    loss = jax.jit(lambda m: m.compute_loss(inputs, ends, segment_ids=SEGMENTS[:, :-1], reduction="none", shift=False))
    counted = np.asarray(loss(model)) != 0
    np.testing.assert_array_equal(counted, np.asarray(SEGMENTS[:, :-1] != 0))


def test_masked_positions_predict_nothing():
    inputs, mask = WINDOWS[:, :-1], jnp.ones((2, 21), bool).at[1, 12:].set(False)
    count = jax.jit(lambda m: m.compute_loss(inputs, WINDOWS[:, 1:], mask, return_valid_count=True, shift=False)[1])(
        models.build(num_layers=1)
    )
    assert int(count) == 21 + 12
