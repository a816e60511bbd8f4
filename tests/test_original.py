"""The model of the CUDA release: sizes, and its checkpoints give the logits, loss and gradients of its oracle."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax import MegalodonConfig, MegalodonForCausalLM
from megalodon_jax.architectures import abstract_model
from megalodon_jax.convert import load_original_checkpoint
from megalodon_jax.convert.loading import InMemory, load_model
from megalodon_jax.convert.original import Original
from megalodon_jax.convert.original_names import here, there
from megalodon_jax.parameters import named_parameters
from megalodon_jax.precision import audit_sensitive_param_dtypes
from megalodon_jax.presets import ORIGINAL, original_config
from tests import kernel_parity, models
from tests.streams import stream
from tests.tolerance import MODEL_RELATIVE, assert_close, errors

COUNTS = {
    "mega200m": 220_627_968, "mega1_3b": 1_342_832_640, "mega1_3b_pg19": 1_327_628_288, "mega7_1b": 7_117_381_632,
    "mega7_3b": 7_385_817_088, "paper_7b": 7_385_817_088,
}  # fmt: skip
VARIANTS = {
    "default": {},
    "everything on": {"swiglu": True, "rescale_nffn": True, "scale_emb": True, "share_emb": True, "rope_base": 500.0},
    "no affine": {"norm_affine": False, "swiglu": True},
}


def config(**changes) -> MegalodonConfig:
    return models.config(variant="original", pad_token_id=0, **changes)


@pytest.mark.parametrize("name", ORIGINAL)
def test_sizes_of_the_release(name):
    """By the formula, and by the shapes of a model that is never allocated."""
    found = original_config(name).parameter_count_breakdown()
    assert found["total"] == COUNTS[name] == sum(found.values()) - found["total"]
    if name in ("mega200m", "mega1_3b_pg19"):
        _, shapes = abstract_model(original_config(name))
        assert sum(int(np.prod(shape.shape)) for shape in shapes.values()) == found["total"]


@pytest.mark.parametrize(
    "changes",
    [
        *models.VARIANTS.values(),
        {"variant": "original"},
        {"variant": "original", "rescale_nffn": True, "norm_affine": False, "output_size": 7},
    ],
)
def test_counts_are_those_of_the_model(changes):
    _, shapes = abstract_model(models.config(**changes))
    counts = models.config(**changes).parameter_count_breakdown()
    assert sum(int(np.prod(shape.shape)) for shape in shapes.values()) == counts["total"]


def test_unknown_sizes():
    with pytest.raises(ValueError, match="unknown model 'mega9b'; the names are mega200m"):
        original_config("mega9b")
    with pytest.raises(ValueError, match="must be divisible"):
        original_config("mega200m", norm_num_groups=7)
    assert not original_config("mega200m").tied
    assert original_config("mega1_3b_pg19").tied


@pytest.fixture(scope="module")
def oracle():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.set_num_threads(1)
    from reference.oracle_torch_original import OriginalLM

    return OriginalLM


def loaded(twin, config) -> MegalodonForCausalLM:
    return load_model(Original([InMemory(twin.state_dict())], 4), config)


@pytest.mark.parametrize("variant", kernel_parity.first(["everything on", "default", "no affine"], 1))
def test_logits_loss_and_gradients_are_those_of_the_oracle(variant, oracle):
    import torch

    c, ids = config(**VARIANTS[variant]), models.ids()
    twin = oracle(c)
    model, given = loaded(twin, c), torch.tensor(np.asarray(ids), dtype=torch.long)
    truth = twin(given)
    assert errors(model(ids)[0], truth.detach().numpy())[0] < MODEL_RELATIVE
    loss = twin.loss(given)
    loss.backward()
    value, gradients = eqx.filter_value_and_grad(lambda m: m.compute_loss(ids, ids))(model)
    assert_close("loss", value, loss.detach().numpy())
    named = {name: parameter.grad for name, parameter in twin.named_parameters()}
    if c.share_emb:
        named.pop("output.output.weight", None)
    found = named_parameters(gradients)
    expected = Original([InMemory(named)], 4)
    assert found.keys() == expected.signatures.keys()
    for name, gradient in found.items():
        assert_close(name, gradient, expected.read(name), units=2000)


@pytest.mark.thorough
def test_padding_and_streams(oracle):
    """A masked token gives nothing and takes nothing; any cut of a stream is one call."""
    import torch

    c, ids = config(num_layers=1), models.ids()
    twin = oracle(c)
    model, mask = loaded(twin, c), np.ones(ids.shape, bool)
    mask[0, 4:7], mask[1, 15:] = False, False
    truth = twin(torch.tensor(np.asarray(ids), dtype=torch.long), torch.tensor(mask)).detach().numpy()
    found, _ = model(ids, jnp.asarray(mask))
    assert errors(np.asarray(found)[mask], truth[mask])[0] < MODEL_RELATIVE
    assert_close("cut", stream(model, ids, (5, 1, 1, 14))[0], model(ids)[0])
    assert not audit_sensitive_param_dtypes(model)


def cut(state, count):
    """A checkpoint in `count` shards, as model parallelism leaves it."""
    along_1 = ("embed.weight", "output.output.weight", "wh2.weight", "fc2.weight", "mega.gamma", "mega.beta")
    whole = ("rmsnorm.weight", "nffn.norm.weight", "nffn.norm.bias", "nffn.alpha", "rope.freqs", "prior_count")

    def part(name, tensor, number):
        axis = 1 if name.endswith(along_1) else 0
        return tensor if name.endswith(whole) else tensor.chunk(count, axis)[number].clone()

    return [{name: part(name, tensor, number) for name, tensor in state.items()} for number in range(count)]


def test_checkpoints_of_the_release(oracle, tmp_path):
    import torch

    c = config(**VARIANTS["everything on"])
    state = oracle(c, torch.float32).state_dict()
    torch.save(state, tmp_path / "consolidated.pth")
    for number, shard in enumerate(cut(state, 2)):
        (tmp_path / "cut").mkdir(exist_ok=True)
        torch.save(shard, tmp_path / "cut" / f"consolidated.{number:02d}.pth")
    (tmp_path / "cut" / "consolidate_config.json").write_text(json.dumps({"model_parallel_size": 2}))
    with pytest.raises(ValueError, match="allow_pickle_checkpoint=True"):
        load_original_checkpoint(tmp_path, c)
    one, two = (
        named_parameters(load_original_checkpoint(path, c, allow_pickle_checkpoint=True))
        for path in (tmp_path, tmp_path / "cut")
    )
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)
    np.testing.assert_array_equal(one["model.layers.1.ffn.rescale"], state["layers.1.nffn.alpha"])
    with pytest.raises(ValueError, match="needs variant='original', got 'hf'"):
        load_original_checkpoint(tmp_path, models.config(), allow_pickle_checkpoint=True)
    untied, headless = dataclasses.replace(c, share_emb=False), tmp_path / "headless.pth"
    torch.save({name: value for name, value in state.items() if name != "output.output.weight"}, headless)
    with pytest.raises(KeyError, match=r"lm_head\.weight"):
        load_original_checkpoint(headless, untied, allow_pickle_checkpoint=True)
    assert load_original_checkpoint(headless, c, allow_pickle_checkpoint=True).lm_head is None


WZ, GAMMA, OMEGA = "layers.0.mega.wz.weight", "layers.0.mega.cema.gamma", "layers.0.mega.cema.omega"
COUNT, MEAN = "output.final_norm.prior_count", "output.final_norm.prior_mean"
ALPHA = "layers.0.nffn.alpha"


@pytest.mark.parametrize(
    ("message", "change"),
    [  # of the second of two shards, or of both
        (r"not in every shard: embed\.weight", lambda a, b: b.pop("embed.weight")),
        (rf"{ALPHA} differs between shards", lambda a, b: b.update({ALPHA: b[ALPHA] + 1})),
        ("float32.* in shard 1 of 2 and", lambda a, b: b.update({WZ: b[WZ][:, :-1]})),
        ("int32.* in shard 1 of 2 and", lambda a, b: b.update({WZ: b[WZ].int()})),
        ("float32.* in shard 1 of 2 and", lambda a, b: b.update({OMEGA: b[OMEGA].repeat(1, 3)})),
        (f"'{GAMMA}'.*last axis of 2, got", lambda a, b: [s.update({GAMMA: s[GAMMA][..., :1]}) for s in (a, b)]),
        (f"'{OMEGA}'.*last axis of 1, got", lambda a, b: [s.update({OMEGA: s[OMEGA][:, 0]}) for s in (a, b)]),
        (f"'{WZ}': expected a tensor of more", lambda a, b: [s.update({WZ: s[WZ][0, 0]}) for s in (a, b)]),
        (r"expected \(16, 32\), got \(16, 31\)", lambda a, b: [s.update({WZ: s[WZ][:, :-1]}) for s in (a, b)]),
        ("prior_count is not 0", lambda a, b: b.update({COUNT: b[COUNT] + 5})),
        (
            "prior_count is int64.*expected one integer",
            lambda a, b: [s.update({COUNT: s[COUNT][None]}) for s in (a, b)],
        ),
        ("norm_num_groups is 4 in the config and 2", lambda a, b: [s.update({MEAN: s[MEAN][:1]}) for s in (a, b)]),
        (
            r"Unknown keys.*: model\.evil\.prior_mean",
            lambda a, b: [s.update({"evil.prior_mean": s[MEAN]}) for s in (a, b)],
        ),
        (
            r"Unknown keys.*: model\.embed\.weight",
            lambda a, b: [s.update({"model.embed.weight": s["embed.weight"]}) for s in (a, b)],
        ),
        (r"Missing key.*wz\.weight", lambda a, b: [s.pop(WZ) for s in (a, b)]),
        ("rescale has 2 values that are NaN", lambda a, b: [s.update({ALPHA: s[ALPHA].log()}) for s in (a, b)]),
    ],
)
def test_shards_that_do_not_fit(message, change, oracle):
    import torch

    c = config(num_layers=1, rescale_nffn=True)
    twin = oracle(c, torch.float32)
    with torch.no_grad():
        twin.get_parameter(ALPHA)[:] = torch.tensor([-1.0, -1.0] + [2.0] * 30)
    shards = cut(twin.state_dict(), 2)
    load_model(Original([InMemory(shard) for shard in shards], 4), c)
    change(*shards)
    with pytest.raises((ValueError, KeyError), match=message):
        load_model(Original([InMemory(shard) for shard in shards], 4), c)


def test_folders_of_shards_that_are_not_whole(tmp_path):
    for text, message in (
        ("", "Expecting value"),
        ("[]", "must be a JSON object, got list"),
        ("{}", "does not say into how many files.*is None"),
        ('{"model_parallel_size": 0}', "does not say into how many files.*is 0"),
        ('{"model_parallel_size": "2"}', "does not say into how many files.*is '2'"),
        ('{"model_parallel_size": true}', "does not say into how many files.*is True"),
        ('{"model_parallel_size": 1, "model_parallel_size": 2}', "model_parallel_size is in it twice"),
    ):
        (tmp_path / "consolidate_config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"consolidate_config\.json.*{message}"):
            load_original_checkpoint(tmp_path, config(), allow_pickle_checkpoint=True)
    (tmp_path / "consolidate_config.json").unlink()
    (tmp_path / "consolidated.00.pth").write_text("")
    with pytest.raises(FileNotFoundError, match=r"holds shards, but no consolidate_config\.json"):
        load_original_checkpoint(tmp_path, config(), allow_pickle_checkpoint=True)
    with pytest.raises(ValueError, match="is one of several files of a model; give their folder"):
        load_original_checkpoint(tmp_path / "consolidated.00.pth", config(), allow_pickle_checkpoint=True)


@pytest.mark.parametrize("name", ["model.embed.weight", "lm_head.weight", "layers.0.attn.wz.weight", "norm.bias"])
def test_names_that_the_release_does_not_have(name):
    assert here(name) == []


@pytest.mark.parametrize("changes", [{"variant": "original", "swiglu": True, "rescale_nffn": True}])
def test_names_there_and_here(changes):
    _, parameters = abstract_model(models.config(**changes))
    for name in parameters:
        assert name in here(there(name))


@pytest.mark.parametrize("cached", [False, True])
def test_dropkey(cached):
    """Pairs are taken out of the softmax: weights that are left still sum to one, and nothing is rescaled."""
    attention = models.build(num_layers=1, attention_dropout=0.5, attention_dropout_mode="dropkey").model.layers[0].attn
    q = jnp.zeros((1, 16, 2, 8))
    v = jnp.ones((1, 16, 2, 24))
    out, _, _ = attention.inner(q, q, v, return_cache=cached, deterministic=False, key=jax.random.key(0))
    assert set(np.unique(np.asarray(out)).tolist()) == {0.0, 1.0}  # 0: a query all of whose keys are gone
    assert 0.5 < np.asarray(out).mean() < 1.0


def test_embeddings_are_dropped_in_the_original_only():
    ids = models.ids()
    for variant, drops in (("original", True), ("hf", False)):
        model = models.build(num_layers=0, variant=variant, dropout=0.5)
        trained, _ = model.model(ids, deterministic=False, key=jax.random.key(0))
        assert (errors(trained, model.model(ids)[0])[0] > 0.1) == drops
