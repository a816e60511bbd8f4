"""GPT-2 files: weights of the PyTorch twin, written as GPT-2's are, give its logits; what is wrong is named."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from megalodon_jax.baselines import crop_block_size, load_gpt2
from megalodon_jax.baselines.gpt2 import gpt2_name
from megalodon_jax.parameters import named_parameters
from tests import baselines, models
from tests.tolerance import MODEL_RELATIVE, errors

FIELDS = {
    "model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 24, "n_positions": 24, "n_ctx": 24, "vocab_size": 64,
    "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "eos_token_id": 63, "attn_pdrop": 0.1,
}  # fmt: skip
IDS = models.ids()


def tensors(kind: str = "gpt", prefix: str = "") -> dict[str, np.ndarray]:
    """As in the published files: linear layers (in, out), causal masks beside them."""
    found = {}
    for name, array in named_parameters(baselines.build(kind)).items():
        there, transposed = gpt2_name(name)
        found[prefix + there] = np.asarray(array).T if transposed else np.asarray(array)
    for layer in range(2):
        found[f"{prefix}h.{layer}.attn.bias"] = np.tril(np.ones((1, 1, 24, 24), np.float32))
        found[f"{prefix}h.{layer}.attn.masked_bias"] = np.array(-1e4, np.float32)
    return found


def save(folder, weights, fields=FIELDS, name="model.safetensors"):
    save_file({key: np.ascontiguousarray(value) for key, value in weights.items()}, folder / name, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_weights_of_the_torch_twin(tmp_path, torch_oracle):
    import torch

    twin = baselines.twin("gpt", torch.float64)
    weights = {}
    for name, value in twin.state_dict().items():
        transposed = re.search(r"\.(c_attn|c_proj|c_fc)\.weight$", name)
        weights[name] = value.float().numpy().T if transposed else value.float().numpy()
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    model = load_gpt2(save(tmp_path, weights))
    truth = twin(torch.tensor(np.asarray(IDS), dtype=torch.long)).detach().numpy()
    assert errors(baselines.logits(model, IDS), truth)[0] < MODEL_RELATIVE


def test_without_prefix_and_in_low_precision(tmp_path):
    model = load_gpt2(save(tmp_path, tensors(), name="other.safetensors") / "other.safetensors")
    models.assert_same(model, baselines.build("gpt"))
    assert model.config == baselines.config("gpt", eos_token_id=63)
    low = load_gpt2(tmp_path / "other.safetensors", dropout=0.1, param_dtype="bfloat16", compute_dtype=jnp.bfloat16)
    assert low.config.dropout == 0.1
    assert low.model.embed.weight.dtype == jnp.bfloat16
    assert low.model.norm.weight.dtype == jnp.float32


def test_shorter_context():
    model = baselines.build("gpt")
    short = crop_block_size(model, 8)
    assert short.config.block_size == 8
    np.testing.assert_array_equal(short.model.position_embed.weight, model.model.position_embed.weight[:8])
    held = named_parameters(model)
    assert all(a is held[name] for name, a in named_parameters(short).items() if "position" not in name)
    with pytest.raises(ValueError, match="9 tokens in a row, the model takes 8"):
        short(IDS[:, :9])
    for size in (0, 25, True):
        with pytest.raises(ValueError, match=r"block_size must be an int in \[1, 24\]"):
            crop_block_size(model, size)


@pytest.mark.parametrize(
    ("kind", "message", "change"),
    [
        (KeyError, "missing tensor: h.1.mlp.c_fc.bias", lambda t: t.pop("h.1.mlp.c_fc.bias")),
        (ValueError, r"unknown tensors: h.2.ln_1.weight \(1 in all\)", lambda t: t.update({"h.2.ln_1.weight": ONE})),
        (ValueError, r"h.0.mlp.c_fc.weight must have shape \(24, 96\), got \(96, 24\)", lambda t: turn(t)),
        (ValueError, "wte.weight has 1 values that are NaN", lambda t: t["wte.weight"].__setitem__((0, 0), np.nan)),
        (
            ValueError,
            "ln_f.bias must be floating, got int32",
            lambda t: t.update({"ln_f.bias": np.arange(24, dtype="i4")}),
        ),
        (ValueError, "lm_head.weight differs", lambda t: t.update({"lm_head.weight": t["wte.weight"] + 1})),
        (ValueError, "has a tensor twice", lambda t: t.update({"transformer.ln_f.bias": t["ln_f.bias"]})),
    ],
)
def test_bad_weights(kind, message, change, tmp_path):
    weights = {name: np.array(value) for name, value in tensors().items()}
    change(weights)
    with pytest.raises(kind, match=message):
        load_gpt2(save(tmp_path, weights))


ONE = np.ones(24, np.float32)


def turn(weights):
    weights["h.0.mlp.c_fc.weight"] = weights["h.0.mlp.c_fc.weight"].T


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type must be 'gpt2', got 'llama'"),
        ({"activation_function": "relu"}, "activation_function must be one of gelu_new, .*got 'relu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must be False"),
        ({"n_inner": 50}, "n_inner must be null or 4 n_embd, got 50"),
        ({"n_layer": 0}, "n_layer must be a positive int"),
    ],
)
def test_bad_config_file(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_gpt2(save(tmp_path, tensors(), FIELDS | changes))


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="Checkpoint not found"):
        load_gpt2(tmp_path)
    save(tmp_path, tensors(), {k: v for k, v in FIELDS.items() if k not in ("n_positions", "n_ctx")})
    with pytest.raises(ValueError, match="n_positions is not in it"):
        load_gpt2(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="the config of the model has to be beside its weights"):
        load_gpt2(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="is no safetensors file, nor an index"):
        load_gpt2(tmp_path / "weights.bin")
