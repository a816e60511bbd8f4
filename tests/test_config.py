"""MegalodonConfig: defaults, every rule and its message, JSON; initial distributions; public names."""

import dataclasses
import importlib
import json
import math
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from megalodon_jax import MegalodonConfig, MegalodonForCausalLM
from megalodon_jax.layers import ComplexEMA
from megalodon_jax.utils import get_initializer, reinit_linear_weights
from tests import models


def test_defaults_and_properties():
    config = MegalodonConfig()
    expected = {
        "vocab_size": 32000, "model_dim": 1024, "num_layers": 12, "num_heads": 1, "z_dim": 256, "value_dim": 2048,
        "ffn_hidden_dim": 2560, "cema_ndim": 16, "chunk_size": 2048, "max_cache_len": None, "cache_unbounded": False,
        "norm_num_groups": 32, "norm_eps": 1e-5, "rope_base": None, "swiglu": False, "rescale_nffn": False,
        "scale_emb": False, "norm_affine": True, "dropout": 0.0, "attention_dropout": 0.0, "hidden_dropout": 0.0,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_positions": 1_000_000, "init_mode": "gaussian",
        "use_checkpoint": False, "output_size": -1, "gemm_backend": "default", "share_emb": None, "variant": "hf",
        "scan_layers": False, "attention_dropout_mode": "post_softmax", "remat": None,
    }  # fmt: skip
    fields = dataclasses.asdict(config)
    assert {k: fields[k] for k in expected} == expected
    assert all(fields[k] == jnp.float32 for k in ("param_dtype", "compute_dtype", "accum_dtype", "softmax_dtype"))
    assert set(fields) - set(expected) == {"param_dtype", "compute_dtype", "accum_dtype", "softmax_dtype"}
    assert (config.head_dim, config.value_head_dim) == (256, 2048)
    assert (config.effective_rope_base, config.effective_max_cache_len) == (10000.0, 2048)
    assert hash(config) == hash(MegalodonConfig())
    assert config == dataclasses.replace(config, compute_dtype="float32")


def test_preset_7b():
    c = MegalodonConfig.from_7b()
    sizes = (c.model_dim, c.num_layers, c.num_heads, c.z_dim, c.value_dim, c.ffn_hidden_dim, c.chunk_size)
    assert sizes == (4096, 32, 4, 1024, 8192, 11264, 4096)
    assert (c.norm_num_groups, c.rope_base, c.swiglu) == (64, 100000.0, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z_dim": 255, "num_heads": 2}, "z_dim.*divisible by num_heads"),
        ({"value_dim": 255, "num_heads": 2}, "value_dim.*divisible by num_heads"),
        ({"model_dim": 100}, "model_dim.*divisible by norm_num_groups"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"dropout": 1.1}, r"dropout must be in \[0, 1\]"),
        ({"attention_dropout": -0.1}, "attention_dropout"),
        ({"hidden_dropout": 2.0}, "hidden_dropout"),
        (
            {"gemm_backend": "fused", "param_dtype": "float64"},
            "param_dtype must be float32 or bfloat16 where gemm_backend",
        ),
        ({"max_cache_len": 0}, "max_cache_len must be positive"),
        ({"max_cache_len": -1}, "max_cache_len must be positive"),
        ({"max_cache_len": 100}, "max_cache_len.*chunk_size"),
        ({"param_dtype": jnp.float16}, "param_dtype must not be float16"),
        ({"compute_dtype": "float16"}, "float16"),
        ({"softmax_dtype": jnp.int32}, "softmax_dtype must be a floating dtype"),
        ({"accum_dtype": "nonsense"}, "accum_dtype must be a floating dtype"),
        ({"param_dtype": None}, "param_dtype must be a floating dtype"),
        ({"compute_dtype": "float64"}, "compute_dtype must be float32 or bfloat16"),
        ({"gemm_backend": "fast"}, "gemm_backend"),
        ({"accum_dtype": jnp.bfloat16}, "accum_dtype should be >= compute_dtype"),
        ({"num_heads": 0}, "num_heads must be a positive int"),
        ({"num_layers": 2.5}, "num_layers"),
        ({"swiglu": "no"}, "swiglu must be bool, got 'no'"),
        ({"norm_eps": "x"}, "norm_eps must be float or int"),
        ({"max_cache_len": "a"}, "max_cache_len must be int or None"),
        ({"rope_base": -1.0}, "rope_base must be positive"),
        ({"rope_base": math.inf}, "rope_base must be positive and finite"),
        ({"norm_eps": math.inf}, "norm_eps must be positive and finite"),
        ({"pad_token_id": True}, "pad_token_id must be int or None"),
        ({"share_emb": True, "output_size": 10}, "share_emb"),
        ({"output_size": 0}, "output_size"),
        ({"variant": "cuda"}, "variant must be 'hf' or 'original', got 'cuda'"),
        ({"attention_dropout_mode": "heads"}, "attention_dropout_mode must be"),
    ],
)
def test_rules(changes, message, unhooked):
    with pytest.raises(ValueError, match=message):
        MegalodonConfig(**changes)


def test_unknown_init_mode_is_found_when_a_model_is_built(unhooked):
    config = models.config(init_mode="magic")
    with pytest.raises(ValueError, match="Unknown init mode"):
        MegalodonForCausalLM(config, key=jax.random.key(0))
    with pytest.raises(ValueError, match="skips"):
        get_initializer("none")


def test_json_round_trip():
    config = MegalodonConfig(compute_dtype=jnp.bfloat16, rope_base=5e5, pad_token_id=None, max_cache_len=4096)
    text = config.to_json()
    assert json.loads(text)["compute_dtype"] == "bfloat16"
    assert MegalodonConfig.from_json(text) == config
    for text, message in (("{", "valid JSON"), ("[]", "JSON object"), ('{"model_dimm": 3}', "model_dimm")):
        with pytest.raises(ValueError, match=message):
            MegalodonConfig.from_json(text)


def test_tying():
    tied = lambda **changes: models.config(**changes).tied  # noqa: E731
    assert tied()
    assert tied(output_size=64)
    assert not tied(output_size=50)
    assert not tied(share_emb=False)
    assert models.build(share_emb=False, num_layers=0).lm_head.weight.shape == (64, 32)


SHAPE = (600, 400)


@pytest.mark.parametrize(
    ("mode", "std", "bound"),
    [
        ("gaussian", 0.98658 / math.sqrt(400), 3 / math.sqrt(400)),  # a normal cut at 3 has standard deviation 0.98658
        ("he", math.sqrt(2 / 400), 2 / 0.87962566 * math.sqrt(2 / 400)),
        ("xavier", math.sqrt(2 / 1000), math.sqrt(6 / 1000)),
        ("bert", 0.02, math.inf),
        ("kaiming", 1 / math.sqrt(3 * 400), math.inf),
    ],
)
def test_initial_distributions(mode, std, bound):
    """Standard deviation, bound, mean, and the share within one standard deviation, of (out, in) weights."""
    weight = np.asarray(get_initializer(mode)(jax.random.key(0), SHAPE, jnp.float32), np.float64)
    np.testing.assert_allclose(weight.std(), std, rtol=0.01)
    assert abs(weight.mean()) < 4 * std / math.sqrt(weight.size)
    assert np.abs(weight).max() <= bound * (1 + 1e-6)
    if bound < math.inf:
        assert np.abs(weight).max() > 0.98 * bound
    inside = lambda sigmas: math.erf(sigmas / math.sqrt(2))  # noqa: E731
    within = {
        "xavier": 1 / math.sqrt(3),
        "he": inside(0.87962566) / inside(2),
        "gaussian": inside(0.98658) / inside(3),
        "bert": inside(1),
        "kaiming": inside(1),
    }[mode]
    np.testing.assert_allclose((np.abs(weight) < std).mean(), within, atol=0.01)


@pytest.mark.thorough
def test_mode_none_keeps_the_layer_librarys_values():
    linear = eqx.nn.Linear(400, 30, key=jax.random.key(1))
    assert reinit_linear_weights(linear, "none", jax.random.key(2)) is linear
    weight = np.asarray(models.build(init_mode="none", num_layers=0).model.embed.weight)
    assert weight.std() > 0.5
    model = MegalodonForCausalLM(models.config(init_mode="none", num_layers=1), key=jax.random.key(0))
    w = np.asarray(model.model.layers[0].ffn.fc1.weight)
    np.testing.assert_allclose(w.std(), 1 / math.sqrt(3 * 32), rtol=0.1)
    assert np.abs(w).max() <= 1 / math.sqrt(32)


@pytest.mark.parametrize("mode", ["gaussian", "he", "xavier", "bert", "kaiming"])
def test_model_uses_the_mode_everywhere(mode):
    changes = {"init_mode": mode, "num_layers": 1, "model_dim": 128, "output_size": 200, "ffn_hidden_dim": 96}
    model = MegalodonForCausalLM(models.config(**changes), key=jax.random.key(0))
    block = model.model.layers[0]

    def expected(out, fan_in):
        return {
            "gaussian": 0.98658 / math.sqrt(fan_in),
            "he": math.sqrt(2 / fan_in),
            "xavier": math.sqrt(2 / (fan_in + out)),
            "bert": 0.02,
            "kaiming": 1 / math.sqrt(3 * fan_in),
        }[mode]

    for linear in (block.attn.wv, block.attn.wh1, block.attn.wh2, block.ffn.fc1, block.ffn.fc2):
        np.testing.assert_allclose(np.asarray(linear.weight).std(), expected(*linear.weight.shape), rtol=0.06)
        if linear.bias is not None:
            np.testing.assert_array_equal(np.asarray(linear.bias), 0)
    mode = "gaussian" if mode == "kaiming" else mode  # as the CUDA release has it
    for vocabulary in (model.model.embed, model.lm_head):
        weight = np.asarray(vocabulary.weight)
        np.testing.assert_allclose(weight.std(), expected(*weight.shape), rtol=0.06)


def test_low_precision_parameters_are_rounded_float32_draws():
    draw = get_initializer("gaussian")
    full, low = (draw(jax.random.key(0), (8, 8), dtype) for dtype in (jnp.float32, jnp.bfloat16))
    assert jnp.array_equal(full.astype(jnp.bfloat16), low)


def test_ema_starts_stable():
    p, q, gamma = ComplexEMA(64, 8, key=jax.random.key(0))._coeffs()
    assert float(jnp.abs(q).max()) < 1
    assert float(p.min()) > 0
    assert p.dtype == jnp.float32
    assert q.dtype == gamma.dtype == jnp.complex64


NAMES = {
    "megalodon_jax": """MegalodonConfig MegalodonBlock MegalodonModel MegalodonForCausalLM ModelCache AttentionCache
        EMAState LayerCache NormState init_cache trim_cache index_cache greedy_token sample_token generate
        generate_jit""",
    "megalodon_jax.config": "MegalodonConfig InitMode GemmBackend",
    "megalodon_jax.types": "AttentionCache NormState EMAState LayerCache ModelCache",
    "megalodon_jax.layers": """attention_single_chunk attention_multi_chunk ChunkedAttention MegalodonAttention
        NormalizedFFN ComplexEMA RMSNorm RotaryEmbedding TimestepNorm""",
    "megalodon_jax.layers.attention": "ChunkedAttention MegalodonAttention NormalizedFFN",
    "megalodon_jax.layers.complex_ema": "ComplexEMA FFT_KERNEL_CHUNK",
    "megalodon_jax.layers.norms": "RMSNorm BatchedLayerNorm",
    "megalodon_jax.layers.rotary": "RotaryEmbedding",
    "megalodon_jax.layers.timestep_norm": "TimestepNorm VARIANCE_FLOOR",
    "megalodon_jax.model": "MegalodonBlock MegalodonModel MegalodonForCausalLM",
    "megalodon_jax.inference": "init_cache trim_cache index_cache greedy_token sample_token generate generate_jit",
    "megalodon_jax.precision": "audit_sensitive_param_dtypes ensure_sensitive_param_dtype",
    "megalodon_jax.ops": "linear_3d matmul_3d_weight",
    "megalodon_jax.utils": "get_initializer reinit_linear_weights",
    "pallas_kernels": """complex_ema timestep_norm chunked_attention normalized_rotary normalized_rotary_attention
        fused_linear feature_norm linear_cross_entropy round_weights explain strict use_implementation compile_for
        KernelUnavailable""",
    "reference": """complex_ema timestep_norm chunked_attention normalized_rotary fused_linear feature_norm
        linear_cross_entropy round_weights""",
}


@pytest.mark.parametrize("module", NAMES)
def test_public_names(module):
    loaded = importlib.import_module(module)
    for name in NAMES[module].split():
        assert hasattr(loaded, name), name


def test_convert_names():
    pytest.importorskip("torch", reason="torch is not installed")
    from megalodon_jax import convert

    for name in ("convert_jax_to_torch", "load_weights_from_torch", "load_from_pretrained", "save_safetensors"):
        assert callable(getattr(convert, name))
    assert convert.StateDict is not None


def test_import_is_light_and_arrows_point_down():
    """No torch, plotting or terminal library; `reference` and `pallas_kernels` import nothing above them."""
    code = """
import sys
import reference; assert not {"pallas_kernels", "megalodon_jax"} & set(sys.modules)
import pallas_kernels; assert "megalodon_jax" not in sys.modules
import megalodon_jax
assert not {"torch", "matplotlib", "rich", "bench"} & set(sys.modules), sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
