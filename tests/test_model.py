"""The model against the NumPy and PyTorch float64 oracles: logits, loss, every gradient; masks, documents, dropout."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax import MegalodonForCausalLM, MegalodonModel
from megalodon_jax.layers.dropout import dropout
from megalodon_jax.parameters import map_parameters, named_parameters
from reference import oracle_numpy_model as numpy_model
from tests import models
from tests.tolerance import MODEL_RELATIVE, assert_close, errors

MASK = jnp.asarray(np.random.default_rng(1).random((2, models.LENGTH)) > 0.3)
SEGMENTS = jnp.asarray([[1] * 5 + [2] * 11 + [0] * 2 + [2] * 3, [0] * 2 + [3] * 12 + [1] * 7], jnp.int32)
TOKENS = {"plain": {}, "mask": {"attention_mask": MASK}, "segments": {"segment_ids": SEGMENTS}}


def jitted(function):
    return eqx.filter_jit(function)


COMBINATIONS = [(v, k) for v in models.VARIANTS for k in TOKENS if v != "no affine" or k == "plain"]


@functools.cache
def computed(variant, kind):
    """Logits, loss and gradients, compiled together once."""
    ids = models.ids()

    @eqx.filter_jit
    def run(model):
        logits, _ = model(ids, **TOKENS[kind])
        return logits, *eqx.filter_value_and_grad(lambda m: m.compute_loss(ids, ids, **TOKENS[kind]))(model)

    return run(models.build(**models.VARIANTS[variant]))


@pytest.mark.parametrize(("variant", "kind"), COMBINATIONS)
def test_logits_and_loss_match_numpy(variant, kind):
    model, ids = models.build(**models.VARIANTS[variant]), models.ids()
    logits, loss, _ = computed(variant, kind)
    assert logits.shape == (2, models.LENGTH, model.config.effective_output_size)
    truth = numpy_model.logits(named_parameters(model), model.config, ids, **TOKENS[kind])
    assert errors(logits, truth)[0] < MODEL_RELATIVE
    truth = numpy_model.loss(named_parameters(model), model.config, ids, ids, **TOKENS[kind])
    np.testing.assert_allclose(loss, truth, rtol=MODEL_RELATIVE)


@pytest.mark.parametrize(("variant", "kind"), COMBINATIONS)
def test_logits_loss_and_gradients_match_torch(variant, kind, torch_oracle):
    import torch

    twin = models.to_torch(models.build(**models.VARIANTS[variant]), torch_oracle, torch.float64)
    ids = torch.tensor(np.asarray(models.ids()), dtype=torch.long)
    tokens = {name: torch.tensor(np.asarray(value)) for name, value in TOKENS[kind].items()}
    logits, loss, gradients = computed(variant, kind)
    with torch.no_grad():
        truth, _ = twin(ids, mask_ema=True, **tokens)
    assert errors(logits, truth.numpy())[0] < MODEL_RELATIVE
    true_loss = twin.loss(ids, ids, mask_ema=True, **tokens)
    true_loss.backward()
    np.testing.assert_allclose(loss, true_loss.item(), rtol=MODEL_RELATIVE)
    expected, ours = dict(twin.named_parameters()), named_parameters(gradients)
    assert len(ours) > 20
    for name, gradient in ours.items():
        assert_close(name, gradient, expected[name].grad.numpy().reshape(gradient.shape), units=300)


def test_gradient_matches_a_finite_difference_of_the_numpy_model():
    model, ids = models.build(), models.ids()
    gradients = named_parameters(computed("default", "plain")[2])
    parameters = {k: np.asarray(v, np.float64) for k, v in named_parameters(model).items()}
    r = np.random.default_rng(2)
    direction = {k: r.normal(size=v.shape) for k, v in parameters.items()}
    step = 1e-6
    up, down = (
        numpy_model.loss({k: v + s * step * direction[k] for k, v in parameters.items()}, model.config, ids, ids)
        for s in (1, -1)
    )
    slope = sum((np.asarray(gradients[k], np.float64) * direction[k]).sum() for k in parameters)
    np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-4)


def test_packed_documents_equal_documents_alone():
    model, ids = models.build(), models.ids()
    packed, _ = model(ids, segment_ids=SEGMENTS)
    for row, start, stop in ((0, 0, 5), (0, 5, 16), (1, 14, 21)):
        alone, _ = model(ids[row : row + 1, start:stop])
        assert_close("document", packed[row : row + 1, start:stop], alone)


def test_position_ids_replace_run_local_positions():
    model, ids = models.build(), models.ids()
    local = jnp.asarray([[*range(5), *range(11), *range(2), *range(3)], [*range(2), *range(12), *range(7)]], jnp.int32)
    by_default, _ = model(ids, segment_ids=SEGMENTS)
    explicit, _ = model(ids, segment_ids=SEGMENTS, position_ids=local)
    assert_close("same", explicit, by_default)
    other, _ = model(ids, segment_ids=SEGMENTS, position_ids=2 * local)
    assert errors(other, by_default)[0] > 1e-3


def test_loss_reductions_and_count():
    model, ids = models.build(), models.ids()
    labels = ids.at[0, 3].set(-100).at[1, 7].set(-1)
    run = jitted(
        lambda m, reduction: m.compute_loss(
            ids, labels, MASK, ignore_index=-100, reduction=reduction, return_valid_count=True
        )
    )
    labels = labels.at[1, 7].set(-100)
    mean, count = run(model, "mean")
    total, _ = run(model, "sum")
    each, _ = run(model, "none")
    valid = np.asarray((labels != -100) & MASK)[:, 1:]
    assert int(count) == valid.sum()
    assert each.shape == (2, models.LENGTH - 1)
    np.testing.assert_array_equal(np.asarray(each)[~valid], 0)
    np.testing.assert_allclose(np.asarray(each).sum(), total, rtol=1e-6)
    np.testing.assert_allclose(total / float(count), mean, rtol=1e-6)


def test_loss_of_nothing_is_zero():
    model, ids = models.build(), models.ids()
    assert model.compute_loss(ids[:, :1], ids[:, :1]) == 0
    assert model.compute_loss(ids, jnp.full_like(ids, -100)) == 0


@pytest.mark.parametrize("chunk", [7, 1000])
def test_chunked_loss_is_the_same_loss(chunk):
    model, ids = models.build(), models.ids()
    both = jitted(lambda m: eqx.filter_value_and_grad(lambda m: m.compute_loss(ids, ids, loss_chunk_size=chunk))(m))
    loss, gradients = both(model)
    _, expected, truth = computed("default", "plain")
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for name, gradient in named_parameters(gradients).items():
        assert_close(name, gradient, named_parameters(truth)[name])


def test_dropout_keeps_the_mean():
    kept = np.asarray(dropout(jnp.ones(100_000), 0.3, False, jax.random.key(0)))
    assert set(np.unique(kept)) == {0.0, np.float32(1 / 0.7)}
    np.testing.assert_allclose(kept.mean(), 1.0, atol=0.01)  # about five standard deviations


def test_dropout_is_random_and_off_when_deterministic():
    model = models.build(num_layers=1, dropout=0.3, hidden_dropout=0.2, attention_dropout=0.2)
    ids = models.ids()
    run = jitted(lambda m, key: m(ids, deterministic=False, key=key)[0])
    a, b, again = run(model, jax.random.key(0)), run(model, jax.random.key(1)), run(model, jax.random.key(0))
    assert jnp.array_equal(a, again)
    assert not jnp.array_equal(a, b)
    assert jnp.array_equal(model(ids)[0], model(ids, key=jax.random.key(0))[0])


def test_dropout_one_gives_zero_not_a_crash():
    model = models.build(dropout=1.0)
    out, _ = model.model.layers[0](jnp.ones((1, 4, 32)), deterministic=False, key=jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(out), 1.0)


@pytest.mark.parametrize("level", ["block", "attention", "feed-forward", "model"])
def test_dropout_without_key_is_an_error_everywhere(level):
    model = models.build(dropout=0.5)
    block, x = model.model.layers[0], jnp.ones((1, 4, 32))
    call = {
        "block": lambda: block(x, deterministic=False),
        "attention": lambda: block.attn(x, deterministic=False),
        "feed-forward": lambda: block.ffn(x, deterministic=False),
        "model": lambda: model(models.ids(), deterministic=False),
    }[level]
    with pytest.raises(ValueError, match="PRNG key required"):
        call()


def test_every_leaf_is_a_floating_array():
    model = models.build(swiglu=True, rescale_nffn=True)
    leaves = jax.tree.leaves(model)
    assert all(eqx.is_inexact_array(leaf) for leaf in leaves)
    assert not any("inv_freq" in name for name in named_parameters(model))


def test_pad_row_embeds_to_zero_only_for_an_int():
    ids = jnp.asarray([[5, 0, 7]], jnp.int32)
    for pad in (0, None):
        model = models.build(pad_token_id=pad)
        row = model.model._embed(ids)[0, 1]
        assert bool(jnp.all(row == 0)) == (pad == 0)


@pytest.mark.parametrize("variant", [pytest.param("default", marks=pytest.mark.thorough), "everything on"])
def test_bfloat16_compute(variant):
    model, ids = models.build(**models.VARIANTS[variant], compute_dtype=jnp.bfloat16), models.ids()
    exact, _, _ = computed(variant, "plain")
    logits, cache = model(ids, return_cache=True)
    assert logits.dtype == jnp.bfloat16
    assert errors(logits.astype(jnp.float32), exact)[0] < 0.03
    layer = cache.layer_caches[0]
    assert (layer.attn.k.dtype, layer.norm.mean.dtype, layer.ema.h.dtype) == (jnp.bfloat16, jnp.float32, jnp.complex64)
    loss, gradients = jitted(eqx.filter_value_and_grad(lambda m: m.compute_loss(ids, ids)))(model)
    assert loss.dtype == jnp.float32
    assert all(g.dtype == jnp.float32 and bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))


def test_param_dtype_reaches_matrices_only():
    model = models.build(num_layers=1, param_dtype=jnp.bfloat16, compute_dtype=jnp.bfloat16, swiglu=True)
    for name, leaf in named_parameters(model).items():
        matrix = any(part in name for part in ("wz", "wv", "wr", "wh", "fc", "embed"))
        assert leaf.dtype == (jnp.bfloat16 if matrix else jnp.float32), name
    assert jnp.isfinite(model.compute_loss(models.ids(), models.ids()))


def test_softmax_and_accum_dtype():
    model, ids = models.build(num_layers=1, compute_dtype=jnp.bfloat16, accum_dtype=jnp.bfloat16), models.ids()
    assert jnp.isfinite(model.compute_loss(ids, ids))
    model = models.build(num_layers=1, softmax_dtype=jnp.bfloat16)
    assert model.compute_loss(ids, ids).dtype == jnp.bfloat16


def test_without_layers():
    model, ids = models.build(num_layers=0), models.ids()
    assert isinstance(model.model, MegalodonModel)
    assert model(ids)[0].shape == (2, models.LENGTH, 64)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.thorough),
        {"dropout": 0.2, "attention_dropout": 0.1, "use_checkpoint": True},
    ],
)
def test_scanned_layers_are_the_same_layers(changes):
    ids, key = models.ids(), jax.random.key(4)
    plain = models.build(rescale_nffn=True, swiglu=True, **changes)
    weights = named_parameters(plain)
    config = dataclasses.replace(plain.config, scan_layers=True)
    scanned = map_parameters(lambda name, _: weights[name], MegalodonForCausalLM(config, key=key))
    loss = lambda m: m.compute_loss(ids, ids, deterministic=not changes, key=key, segment_ids=SEGMENTS)  # noqa: E731
    (a, ga), (b, gb) = (jitted(eqx.filter_value_and_grad(loss))(m) for m in (plain, scanned))
    assert_close("loss", b, a)
    for name, gradient in named_parameters(gb).items():
        assert_close(name, gradient, named_parameters(ga)[name], units=300)


def test_a_scanned_program_does_not_grow_with_depth():
    def lines(layers, scan):
        config = models.config(num_layers=layers, scan_layers=scan)
        model = eqx.filter_eval_shape(MegalodonForCausalLM, config, key=jax.random.key(0))
        arrays, static = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
        loss = lambda a, ids: eqx.combine(a, static).compute_loss(ids, ids)  # noqa: E731
        ids = jax.ShapeDtypeStruct((1, 16), jnp.int32)
        text = jax.jit(jax.grad(loss)).lower(arrays, ids).as_text()
        return sum("dot_general" in line for line in text.splitlines())

    assert lines(6, True) == lines(2, True)
    assert lines(6, False) > 2 * lines(2, False)
