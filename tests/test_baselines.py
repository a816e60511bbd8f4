"""Llama and GPT: sizes, initial values, errors; logits, loss, gradients and AdamW against PyTorch; documents."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from megalodon_jax import loss as losses
from megalodon_jax.baselines import GPT, GPTConfig, Llama, LlamaConfig
from megalodon_jax.parameters import named_parameters
from tests import baselines, models
from tests.test_lowering import cuda_text, default_precision_dots
from tests.tolerance import MODEL_RELATIVE, assert_close, errors

SHORT = ("llama", "gpt")
KINDS = [*SHORT, *(pytest.param(k, marks=pytest.mark.thorough) for k in baselines.KINDS if k not in SHORT)]
LLAMA, GPT_TOO = (pytest.param(kind, marks=pytest.mark.thorough) for kind in SHORT)
STEPS, RATE, DECAY, EPS = 3, 1e-2, 0.1, 1e-5  # a larger eps than usual: some gradients are zero but for rounding
IDS = models.ids()
SEGMENTS = jnp.asarray([[1] * 5 + [2] * 11 + [0] * 2 + [2] * 3, [0] * 2 + [3] * 12 + [1] * 7], jnp.int32)


def decayed(tree):
    return jax.tree.map(lambda a: a.ndim >= 2, tree)


@functools.cache
def trained(kind):
    """Logits, loss and gradients at first, and the parameters after a few steps; one compiled program."""
    optimizer = optax.adamw(RATE, weight_decay=DECAY, eps=EPS, mask=decayed)

    @jax.jit
    def step(parameters, state):
        loss, gradients = jax.value_and_grad(lambda p: eqx.combine(p, static).compute_loss(IDS, IDS))(parameters)
        logits, _ = eqx.combine(parameters, static)(IDS)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes ints and floats
            updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, logits, loss, gradients

    parameters, static = eqx.partition(baselines.build(kind), eqx.is_array)
    parameters, state, *first = step(parameters, optimizer.init(parameters))
    for _ in range(STEPS - 1):
        parameters, state, *_ = step(parameters, state)
    return *first, parameters


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (LlamaConfig(), 12_489_600),
        (LlamaConfig(dim=128, depth=2, heads=4, dim_head=32), 557_696),
        (LlamaConfig(dim=128, depth=2, heads=4, dim_head=32, tied_embedding=False), 557_696 + 256 * 128),
        (GPTConfig(vocab_size=50257), 124_439_808),
        (GPTConfig(vocab_size=50257, bias=False), 124_439_808 - 12 * (2 + 3 + 1 + 4 + 1) * 768 - 768),
    ],
)
def test_parameter_counts(config, count):
    model = eqx.filter_eval_shape(Llama if isinstance(config, LlamaConfig) else GPT, config, key=jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(model)) == count


@pytest.mark.parametrize("kind", SHORT)
def test_every_leaf_is_a_weight(kind):
    """No rotary table, no mask: nothing that training could move."""
    model = baselines.build(kind)
    assert all(name.endswith((".weight", ".bias")) for name in named_parameters(model))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model))
    low = named_parameters(baselines.build(kind, param_dtype="bfloat16"))
    assert {name for name, a in low.items() if a.dtype == jnp.float32} == {name for name in low if "norm" in name}


@pytest.mark.thorough
def test_initial_values():
    initial = eqx.filter_jit(lambda cls, config: cls(config, key=jax.random.key(0)))
    llama = named_parameters(initial(Llama, LlamaConfig(dim=64, depth=1, tied_embedding=False)))
    assert_std(llama["model.embed.weight"], 0.02)
    assert_std(llama["lm_head.weight"], 0.02)
    for name in ("attn.q", "attn.o", "ffn.gate", "ffn.down"):
        weight = np.asarray(llama[f"model.layers.0.{name}.weight"])
        bound = 1 / math.sqrt(weight.shape[1])
        assert 0.98 * bound < np.abs(weight).max() <= bound
        assert_std(weight, bound / math.sqrt(3))
    gpt = initial(GPT, GPTConfig(block_size=64, vocab_size=64, n_layer=2, n_embd=48))
    for name, array in named_parameters(gpt).items():
        if name.endswith("bias") or "norm" in name:
            assert np.all(np.asarray(array) == float(name.endswith("weight")))
        else:
            assert_std(array, 0.01 if "out" in name or "down" in name else 0.02)


def assert_std(array, expected):
    assert np.std(array) == pytest.approx(expected, rel=0.06)
    assert abs(np.mean(array)) < 0.1 * expected


@pytest.mark.parametrize("kind", KINDS)
def test_logits_loss_and_gradients_match_torch(kind, torch_oracle):
    import torch

    twin, ids = baselines.twin(kind, torch.float64), torch.tensor(np.asarray(IDS), dtype=torch.long)
    logits, loss, gradients, _ = trained(kind)
    assert errors(logits, twin(ids).detach().numpy())[0] < MODEL_RELATIVE
    truth = twin.loss(ids)
    truth.backward()
    np.testing.assert_allclose(loss, truth.item(), rtol=MODEL_RELATIVE)
    expected, ours = dict(twin.named_parameters()), named_parameters(gradients)
    assert len(ours) == len(expected)
    for name, gradient in ours.items():
        assert_close(name, gradient, expected[baselines.twin_name(kind, name)].grad.numpy(), units=300)


@pytest.mark.parametrize("kind", KINDS)
def test_adamw_matches_torch(kind, torch_oracle):
    import torch

    twin, ids = baselines.twin(kind, torch.float64), torch.tensor(np.asarray(IDS), dtype=torch.long)
    groups = [
        {"params": [p for p in twin.parameters() if (p.ndim >= 2) == wide], "weight_decay": DECAY * wide}
        for wide in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=EPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        twin.loss(ids).backward()
        optimizer.step()
    expected = dict(twin.named_parameters())
    for name, value in named_parameters(trained(kind)[-1]).items():
        truth = expected[baselines.twin_name(kind, name)].detach().numpy()
        np.testing.assert_allclose(value, truth, atol=1e-2 * RATE, err_msg=name)


@pytest.mark.parametrize("kind", [LLAMA, "gpt"])
def test_packed_documents_equal_documents_alone(kind):
    model = baselines.build(kind)
    packed = baselines.logits(model, IDS, segment_ids=SEGMENTS)
    for row, start, stop in ((0, 5, 14), (1, 2, 11)):  # their first nine tokens
        alone = baselines.logits(model, IDS[row : row + 1, start:stop])
        assert_close("document", packed[row : row + 1, start:stop], alone)


def test_loss_counts_what_is_there():
    """Targets that cross documents, are padding, masked or ignored do not count; with shift=False labels say it."""
    mask, labels = jnp.ones(IDS.shape, bool).at[0, 7].set(False), IDS.at[1, 9].set(-100)
    after = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)))

    @eqx.filter_jit
    def run(model):
        logits, _ = model(IDS, mask, segment_ids=SEGMENTS)
        tokens = {"attention_mask": mask, "segment_ids": SEGMENTS, "return_valid_count": True}
        of = {r: model.compute_loss(IDS, labels, reduction=r, **tokens) for r in ("none", "mean")}
        return logits, of, model.compute_loss(IDS, after, reduction="none", shift=False, **tokens)

    logits, of, (shifted, shifted_count) = run(baselines.build("llama", depth=1))
    each = np.asarray(losses.token_losses(logits, jnp.where(after == -100, 0, after), jnp.float32))
    within = np.asarray(SEGMENTS[:, 1:] == SEGMENTS[:, :-1])
    valid = within & np.asarray((SEGMENTS != 0) & mask & (labels != -100))[:, 1:]
    expected = np.where(valid, each[:, :-1], 0)
    np.testing.assert_allclose(of["none"][0], expected, rtol=1e-5)
    np.testing.assert_allclose(of["mean"][0], expected.sum() / valid.sum(), rtol=1e-5)
    assert all(count == valid.sum() for _, count in of.values())
    valid = np.asarray((SEGMENTS != 0) & mask & (after != -100))
    np.testing.assert_allclose(shifted, np.where(valid, each, 0), rtol=1e-5)
    assert shifted_count == valid.sum()


@pytest.mark.thorough
def test_windows_of_one_token_more():
    window = IDS[:, :10]

    @eqx.filter_jit
    def run(model):
        own = model.compute_loss(window, window)
        return (
            own,
            model.compute_loss(window[:, :-1], window[:, 1:], shift=False),
            model.compute_loss(*[IDS[:, :1]] * 2),
        )

    whole, windows, nothing = run(baselines.build("gpt", n_layer=1))
    np.testing.assert_allclose(windows, whole, rtol=1e-5)
    assert nothing == 0


@eqx.filter_jit
def loss_and_gradients(model, labels, **options):
    """The loss, of all tokens together, and its gradients."""
    return eqx.filter_value_and_grad(lambda m: jnp.sum(m.compute_loss(IDS, labels, **options)))(model)


@pytest.mark.thorough
@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_in_chunks_is_the_same(shift, reduction, monkeypatch):
    model, options = baselines.build("llama untied", depth=1), {"reduction": reduction, "shift": shift}
    whole, gradients = loss_and_gradients(model, IDS, **options)
    monkeypatch.setattr(losses, "LARGEST_WHOLE", 1)
    monkeypatch.setattr(losses, "CHUNK", 16)
    loss, chunked = loss_and_gradients(model, IDS, ignore_index=-1, **options)  # another program
    np.testing.assert_allclose(loss, whole, rtol=1e-5)
    for name, gradient in named_parameters(gradients).items():
        assert_close(name, named_parameters(chunked)[name], gradient)


@pytest.mark.parametrize("kind", ["llama", GPT_TOO])
def test_bfloat16_is_near_float32(kind):
    model = baselines.build(kind, compute_dtype="bfloat16")
    logits = baselines.logits(model, IDS)
    assert logits.dtype == jnp.bfloat16
    assert errors(logits.astype(jnp.float32), trained(kind)[0])[0] < 0.03


@pytest.mark.thorough
def test_dropout_is_random():
    model = baselines.build("gpt", dropout=0.2, n_layer=1)
    still = baselines.logits(model, IDS)
    np.testing.assert_array_equal(still, baselines.logits(baselines.build("gpt", n_layer=1), IDS))
    run = eqx.filter_jit(lambda m, key: m(IDS, None, None, False, False, key)[0])
    one, other = (run(model, jax.random.key(seed)) for seed in (0, 1))
    assert errors(one, other)[0] > 0.1
    np.testing.assert_array_equal(one, run(model, jax.random.key(0)))
    with pytest.raises(ValueError, match="PRNG key required"):
        model(IDS, deterministic=False)


@pytest.mark.parametrize("kind", [LLAMA, "gpt"])
def test_float32_products_ask_for_the_highest_precision(kind):
    parameters, static = eqx.partition(baselines.build(kind), eqx.is_array)

    def run(p, ids):
        model = eqx.combine(p, static)
        _, cache = model(ids[:, :5], return_cache=True)
        _, cache = model(ids[:, 5:8], cache=cache, return_cache=True)
        return jax.value_and_grad(lambda m: m.compute_loss(ids, ids))(model), model(ids[:, 8:9], cache=cache)

    dots, default = default_precision_dots(cuda_text(run, parameters, IDS))
    assert dots > 50
    assert default == 0


@pytest.mark.parametrize("cls", [LlamaConfig, GPTConfig])
def test_config_json(cls):
    config = cls(vocab_size=99, eos_token_id=98, compute_dtype="bfloat16")
    assert cls.from_json(config.to_json()) == config
    assert hash(config) == hash(cls.from_json(config.to_json()))
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "JSON object, got list"),
        ('{"dims": 1}', "unknown config key"),
    ):
        with pytest.raises(ValueError, match=message):
            cls.from_json(text)


@pytest.mark.parametrize(
    ("cls", "changes", "message"),
    [
        (LlamaConfig, {"dim": 0}, "dim must be a positive int, got 0"),
        (LlamaConfig, {"depth": True}, "depth must be a positive int"),
        (LlamaConfig, {"dim_head": 7}, "dim_head must be even"),
        (LlamaConfig, {"rope_theta": math.inf}, "rope_theta must be positive and finite"),
        (LlamaConfig, {"tied_embedding": 1}, "tied_embedding must be a bool"),
        (LlamaConfig, {"compute_dtype": "float16"}, "compute_dtype must be float32 or bfloat16"),
        (LlamaConfig, {"param_dtype": "nothing"}, "param_dtype must be float32 or bfloat16"),
        (LlamaConfig, {"param_dtype": None}, "param_dtype must be float32 or bfloat16"),
        (GPTConfig, {"n_embd": 100}, "n_embd 100 must be divisible by n_head 12"),
        (GPTConfig, {"dropout": 1.5}, r"dropout must be in \[0, 1\]"),
        (GPTConfig, {"gelu": "new"}, "gelu must be 'tanh' or 'exact'"),
        (GPTConfig, {"norm_eps": 0.0}, "norm_eps must be positive"),
        (GPTConfig, {"eos_token_id": 50304}, "eos_token_id must be None or an int"),
    ],
)
@pytest.mark.usefixtures("unhooked")
def test_bad_config(cls, changes, message):
    with pytest.raises(ValueError, match=message):
        cls(**changes)


@pytest.mark.parametrize(
    ("kind", "message", "call"),
    [
        (ValueError, r"out-of-bounds.*\[0, 64\)", lambda m: m(IDS.at[0, 0].set(64))),
        (ValueError, "empty", lambda m: m(IDS[:, :0])),
        (TypeError, "bool", lambda m: m(IDS, IDS)),
        (ValueError, "25 tokens in a row, the model takes 24", lambda m: m(jnp.zeros((1, 25), jnp.int32))),
        (ValueError, "negative", lambda m: m(IDS, segment_ids=-SEGMENTS)),
        (ValueError, "segment_ids cannot", lambda m: m(IDS, segment_ids=SEGMENTS, return_cache=True)),
        (ValueError, "labels must have", lambda m: m.compute_loss(IDS, IDS[:, 1:])),
        (ValueError, "labels contain", lambda m: m.compute_loss(IDS, IDS.at[0, 4].set(99))),
        (ValueError, "reduction", lambda m: m.compute_loss(IDS, IDS, reduction="max")),
    ],
)
@pytest.mark.usefixtures("unhooked")
def test_bad_input(kind, message, call):
    with pytest.raises(kind, match=message):
        call(baselines.build("llama"))
