"""The loss with its gradient formed chunk by chunk: NumPy in float64, the path over whole logits, what is in memory."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from megalodon_jax import MegalodonForCausalLM
from megalodon_jax.fused_loss import weighted_loss
from megalodon_jax.loss import CHUNK, LARGEST_WHOLE
from megalodon_jax.parameters import named_parameters
from pallas_kernels import compile_for, kernels_in, use_implementation
from tests import models
from tests.tolerance import as_float64, assert_close, errors

ROWS, VOCAB, DIM = (2, 5), 11, 6
CHUNKS = [1, 4, 10, 100]  # of 10 tokens: one each, a last chunk that is not full, all, more than all


def inputs(dtype=jnp.float32, scale=1.0):
    r = np.random.default_rng(0)
    hidden = jnp.asarray(r.normal(size=(*ROWS, DIM)) * scale, dtype)
    weight = jnp.asarray(r.normal(size=(VOCAB, DIM)), jnp.float32)
    factors = jnp.asarray(r.random(ROWS) * (r.random(ROWS) > 0.3), jnp.float32)
    return hidden, weight, jnp.asarray(r.integers(0, VOCAB, ROWS), jnp.int32), factors


def numpy_loss(hidden, weight, targets, factors):
    """The equations of the module in float64: loss, dh, dW."""
    h, w, a = as_float64(hidden).reshape(-1, DIM), as_float64(weight), as_float64(factors).reshape(-1, 1)
    z = h @ w.T
    top = z.max(1, keepdims=True)
    log_softmax = z - top - np.log(np.exp(z - top).sum(1, keepdims=True))
    hit = np.eye(VOCAB)[np.asarray(targets).reshape(-1)]
    dz = a * (np.exp(log_softmax) - hit)
    return -(a * hit * log_softmax).sum(), (dz @ w).reshape(*ROWS, DIM), dz.T @ h


def differentiated(hidden, weight, targets, factors, chunk, cotangent=1.0, fused=False):
    loss = lambda h, w: cotangent * jnp.asarray(weighted_loss(h, w, targets, factors, chunk, jnp.float32, fused))  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, weight)
    return value, *gradients


@pytest.mark.parametrize("chunk", CHUNKS)
def test_value_and_gradients_match_numpy(chunk):
    args = inputs()
    truth = numpy_loss(*args)
    for name, value, expected in zip(("loss", "dh", "dW"), differentiated(*args, chunk), truth, strict=True):
        assert_close(name, value, expected)
    assert_close("not differentiated", weighted_loss(*args, chunk, jnp.float32), truth[0])


def test_the_cotangent_multiplies():
    args = inputs()
    for value, expected in zip(differentiated(*args, 4, -0.3), numpy_loss(*args), strict=True):
        assert_close("times -0.3", value, -0.3 * expected)


def test_large_logits_neither_overflow_nor_vanish():
    args, by_kernels = inputs(scale=1e4), use_implementation(linear_cross_entropy="triton_interpret")
    for fused in (False, True):
        with by_kernels if fused else use_implementation():
            found = differentiated(*args, 4, fused=fused)
        for value, expected in zip(found, numpy_loss(*args), strict=True):
            assert_close("large", value, expected, units=1000)


def test_bfloat16_is_as_exact_as_whole_logits():
    hidden, weight, targets, factors = inputs(jnp.bfloat16)
    truth = numpy_loss(hidden, weight.astype(jnp.bfloat16), targets, factors)

    def whole(h, w):
        logits = jnp.einsum("bld,vd->blv", h, w.astype(h.dtype), preferred_element_type=jnp.float32).astype(h.dtype)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), targets[..., None], -1)[..., 0]
        return -jnp.sum(factors * picked)

    value, gradients = jax.value_and_grad(whole, (0, 1))(hidden, weight)
    ours = differentiated(hidden, weight, targets, factors, 4)
    assert [a.dtype for a in ours] == [jnp.float32, jnp.bfloat16, jnp.float32]
    for a, b, expected in zip(ours, (value, *gradients), truth, strict=True):
        assert errors(a, expected)[0] <= max(2 * errors(b, expected)[0], 1e-3)


def test_tokens_of_factor_zero_are_left_out():
    hidden, weight, targets, _ = inputs()
    value, dh, dw = differentiated(hidden, weight, targets, jnp.zeros(ROWS), 4)
    assert value == 0
    assert not dh.any()
    assert not dw.any()


@pytest.mark.parametrize("bad", [-1, VOCAB])
def test_a_target_out_of_range_is_not_silent(bad):
    hidden, weight, targets, factors = inputs()
    targets = targets.at[0, 1].set(bad)
    loss = functools.partial(weighted_loss, chunk=4, accum_dtype=jnp.float32)
    assert jnp.isnan(loss(hidden, weight, targets, factors.at[0, 1].set(1.0)))
    assert jnp.isfinite(loss(hidden, weight, targets, factors.at[0, 1].set(0.0)))


def test_composes_with_scan_remat_and_vmap():
    hidden, weight, targets, factors = inputs()
    _, dh, dw = numpy_loss(hidden, weight, targets, factors)
    loss = jax.checkpoint(lambda h, w: weighted_loss(h, w, targets, factors, 4, jnp.float32))

    def scanned(h, w):
        return jax.lax.scan(lambda total, scale: (total + scale * loss(h, w), None), 0.0, jnp.asarray([1.0, 2.0]))[0]

    got = jax.jit(jax.grad(scanned, (0, 1)))(hidden, weight)
    assert_close("dh", got[0], 3 * dh)
    assert_close("dW", got[1], 3 * dw)
    mapped = jax.vmap(jax.grad(loss), (0, None))(jnp.stack([hidden, hidden]), weight)
    assert_close("vmap", mapped, np.stack([dh, dh]))


IDS = models.ids()
LABELS = IDS.at[0, 3].set(-100).at[1, 7].set(-100)
TOKENS = {
    "mask": {"attention_mask": jnp.asarray(np.random.default_rng(1).random(IDS.shape) > 0.3)},
    "segments": {"segment_ids": jnp.asarray([[1] * 5 + [2] * 11 + [0] * 5, [3] * 12 + [1] * 9], jnp.int32)},
}
KINDS = {
    "tied": {},
    "untied": {"output_size": 50},
    "original": {"variant": "original"},
    "bfloat16": {"compute_dtype": jnp.bfloat16},
    "bfloat16 original": {"compute_dtype": jnp.bfloat16, "variant": "original"},
}


def of_model(model, chunk, reduction, **tokens):
    loss = lambda m: m.compute_loss(IDS, LABELS, reduction=reduction, loss_chunk_size=chunk, **tokens)  # noqa: E731
    value, gradients = eqx.filter_jit(eqx.filter_value_and_grad(loss))(model)
    return {"loss": value, **named_parameters(gradients)}


@pytest.mark.parametrize(
    ("kind", "reduction", "tokens"),
    [
        ("tied", "mean", "mask"),
        ("untied", "sum", "segments"),
        ("original", "sum", "mask"),
        ("bfloat16", "mean", "segments"),
        ("bfloat16 original", "sum", "mask"),
    ],
)
def test_the_model_s_loss_is_that_of_whole_logits(kind, reduction, tokens):
    model = models.build(num_layers=0, **KINDS[kind])
    chunked, whole = (of_model(model, chunk, reduction, **TOKENS[tokens]) for chunk in (9, None))
    if "bfloat16" not in kind:
        for name, value in chunked.items():
            assert_close(name, value, whole[name])
        return
    truth = of_model(models.with_config(model, compute_dtype=jnp.float32), None, reduction, **TOKENS[tokens])
    for name, value in chunked.items():
        assert value.dtype == whole[name].dtype
        assert errors(value, truth[name])[0] <= max(2 * errors(whole[name], truth[name])[0], 1e-3), name


def test_dtypes_of_loss_and_gradient_follow_the_config():
    model = models.build(num_layers=0, param_dtype=jnp.bfloat16, compute_dtype=jnp.bfloat16, softmax_dtype=jnp.bfloat16)
    got = of_model(model, 9, "mean")
    assert got["loss"].dtype == got["model.embed.weight"].dtype == jnp.bfloat16
    assert all(jnp.isfinite(a).all() for a in got.values())


def test_chunks_of_a_batch_where_nothing_counts():
    model, nothing = models.build(num_layers=0), jnp.full_like(IDS, -100)
    loss = lambda m: m.compute_loss(IDS, nothing, loss_chunk_size=9)  # noqa: E731
    value, gradients = eqx.filter_jit(eqx.filter_value_and_grad(loss))(model)
    assert value == 0
    assert not any(a.any() for a in jax.tree.leaves(gradients))
    assert model.compute_loss(IDS[:, :1], IDS[:, :1], loss_chunk_size=9) == 0


def test_forward_mode_needs_whole_logits():
    arrays, static = eqx.partition(models.build(num_layers=0), eqx.is_array)
    loss = lambda a, chunk: eqx.combine(a, static).compute_loss(IDS, IDS, loss_chunk_size=chunk)  # noqa: E731
    slope = jax.jit(lambda a: jax.jvp(lambda a: loss(a, None), (a,), (a,))[1])(arrays)
    gradient = jax.jit(jax.grad(lambda a: loss(a, 9)))(arrays)
    assert_close("jvp", slope, sum(jax.tree.leaves(jax.tree.map(jnp.vdot, arrays, gradient))))
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda a: loss(a, 9), (arrays,), (arrays,))


def largest(jaxpr) -> int:
    """Elements of the largest array that a program makes, at any depth."""
    sizes = [v.aval.size for equation in jaxpr.eqns for v in equation.outvars if hasattr(v.aval, "size")]
    inner = [largest(j) for equation in jaxpr.eqns for j in core.jaxprs_in_params(equation.params)]
    return max([0, *sizes, *inner])


@pytest.mark.parametrize(
    ("asked", "reduction", "rows"),
    [(None, "mean", CHUNK), (None, "sum", CHUNK), (None, "none", CHUNK), (16, "mean", 16), (16, "none", 16)],
)
def test_all_logits_are_never_in_memory(asked, reduction, rows):
    config = models.config(vocab_size=8192, model_dim=4, num_layers=0, norm_num_groups=1)
    model = eqx.filter_eval_shape(MegalodonForCausalLM, config, key=jax.random.key(0))
    arrays, static = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    ids = jax.ShapeDtypeStruct((2, CHUNK + 1), jnp.int32)
    assert 2 * CHUNK * config.vocab_size > LARGEST_WHOLE

    def loss(arrays, ids):
        return jnp.sum(eqx.combine(arrays, static).compute_loss(ids, ids, reduction=reduction, loss_chunk_size=asked))

    program = jax.make_jaxpr(jax.value_and_grad(loss))(arrays, ids)
    assert largest(program.jaxpr) <= max(rows, 2 * 4) * config.vocab_size


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_token_has_nothing_to_predict(dtype):
    model = models.build(compute_dtype=dtype, accum_dtype=dtype)
    ids = models.ids()[:, :1]
    value, gradients = eqx.filter_value_and_grad(lambda m: m.compute_loss(ids, ids))(model)
    assert value == 0
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(eqx.filter(gradients, eqx.is_array)))


def test_a_token_that_does_not_count_may_hold_anything():
    r = np.random.default_rng(0)
    hidden = jnp.asarray(r.normal(size=(2, 5, 4)), jnp.float32).at[0, 3].set(jnp.nan)
    weight, targets = jnp.asarray(r.normal(size=(7, 4)), jnp.float32), jnp.asarray(r.integers(0, 7, (2, 5)))
    factors = jnp.ones((2, 5)).at[0, 3].set(0.0)
    gradients = jax.grad(lambda h, w: weighted_loss(h, w, targets, factors, 4, jnp.float32), argnums=(0, 1))
    for gradient in gradients(hidden, weight):
        assert jnp.all(jnp.isfinite(gradient))


KERNELS = [f"linear_cross_entropy_{kernel}" for kernel in ("forward", "dhidden", "dweight")]


@pytest.mark.parametrize("implementation", ["xla", "triton_interpret"])
def test_chunks_by_the_op(implementation):
    """Of 4 tokens, of which the last chunk has 2; with NaN in a token that does not count."""
    hidden, weight, targets, factors = inputs()
    factors = factors.at[0, 3].set(0.0)
    expected = numpy_loss(hidden, weight, targets, factors)
    with use_implementation(linear_cross_entropy=implementation):
        found = differentiated(hidden.at[0, 3].set(jnp.nan), weight, targets, factors, 4, -0.3, fused=True)
        for name, value, truth in zip(("loss", "dh", "dW"), found, expected, strict=True):
            assert_close(name, value, -0.3 * truth)
        unknown = differentiated(hidden, weight, targets.at[1, 1].set(VOCAB), jnp.ones(ROWS), 4, fused=True)
        assert jnp.isnan(unknown[0])


@pytest.mark.thorough
def test_chunks_by_the_op_compose():
    hidden, weight, targets, factors = inputs()
    loss = jax.checkpoint(lambda h, w: weighted_loss(h, w, targets, factors, 4, jnp.float32, True))
    _, dh, dw = numpy_loss(hidden, weight, targets, factors)
    with use_implementation(linear_cross_entropy="triton_interpret"):
        assert_close("not differentiated", loss(hidden, weight), numpy_loss(hidden, weight, targets, factors)[0])
        mapped = jax.vmap(jax.grad(loss, (0, 1)), (0, None))(jnp.stack([hidden, hidden]), weight)
        assert_close("dh", mapped[0], np.stack([dh, dh]))
        assert_close("dW", mapped[1], np.stack([dw, dw]))


@pytest.mark.parametrize(("backend", "kernels"), [("default", []), ("fused", KERNELS)])
def test_the_fused_backend_s_loss_is_by_kernels(backend, kernels):
    config = models.config(num_layers=0, gemm_backend=backend, compute_dtype=jnp.bfloat16)
    arrays, static = eqx.partition(MegalodonForCausalLM(config, key=jax.random.key(0)), eqx.is_array)

    def loss(arrays):
        return eqx.combine(arrays, static).compute_loss(IDS, LABELS, loss_chunk_size=9)

    with compile_for("sm_90"):
        lowered = jax.jit(jax.value_and_grad(loss)).trace(arrays).lower(lowering_platforms=("cuda",))
    assert sorted(name for name in kernels_in(lowered) if "entropy" in name) == sorted(kernels)
