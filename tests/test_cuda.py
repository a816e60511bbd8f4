"""On a GPU, run by users with `pytest -m cuda`: kernels and reference against the oracles, determinism, the model.

The tests of the kernels are those of `test_norm_kernels.py`, `test_ema_kernels.py`, `test_attention_kernels.py`,
`test_rotary_kernels.py`, `test_linear_kernels.py`, `test_feature_kernels.py` and `test_cross_entropy_kernels.py` on
another rung; `test_the_lanes_have_the_same_tests` runs everywhere and keeps them from drifting apart.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bench import ops, parity
from bench.formulations.attention import attention_by_value_tiles
from pallas_kernels import (
    chunked_attention,
    complex_ema,
    feature_norm,
    fused_linear,
    kernels_in,
    linear_cross_entropy,
    normalized_rotary,
    timestep_norm,
)
from pallas_kernels.chunked_attention.specs import PRESETS as ATTENTION_PRESETS
from pallas_kernels.complex_ema.specs import PRESETS as EMA_PRESETS
from pallas_kernels.feature_norm.specs import PRESETS as FEATURE_PRESETS
from pallas_kernels.fused_linear.specs import PRESETS as LINEAR_PRESETS
from pallas_kernels.linear_cross_entropy.specs import PRESETS as CROSS_ENTROPY_PRESETS
from pallas_kernels.normalized_rotary.specs import PRESETS as ROTARY_PRESETS
from pallas_kernels.timestep_norm.specs import PRESETS as NORM_PRESETS
from tests import (
    attention_laws,
    cases,
    cross_entropy_laws,
    ema_laws,
    feature_laws,
    kernel_parity,
    linear_laws,
    norm_laws,
    rotary_laws,
    rounding_laws,
    test_attention_kernels,
    test_cross_entropy_kernels,
    test_ema_kernels,
    test_feature_kernels,
    test_linear_kernels,
    test_norm_kernels,
    test_rotary_kernels,
)
from tests.tolerance import assert_close

cuda = pytest.mark.cuda


@cuda
@pytest.mark.parametrize("spec", kernel_parity.NORM, ids=str)
def test_timestep_norm(spec):
    kernel_parity.check(spec, "triton")


@cuda
@pytest.mark.parametrize("spec", kernel_parity.EMA, ids=str)
def test_complex_ema(spec):
    kernel_parity.check(spec, "triton")


@cuda
@pytest.mark.parametrize("spec", kernel_parity.LONG_EMA, ids=str)
def test_long_complex_ema(spec):
    kernel_parity.check(spec, "triton")


@cuda
@pytest.mark.parametrize("spec", kernel_parity.ATTENTION, ids=str)
def test_chunked_attention(spec):
    kernel_parity.check(spec, "triton")


@cuda
@pytest.mark.parametrize("spec", kernel_parity.ROTARY, ids=str)
def test_normalized_rotary(spec):
    kernel_parity.check(spec, "triton")


@cuda
@pytest.mark.parametrize("spec", kernel_parity.LINEAR, ids=str)
def test_fused_linear(spec):
    kernel_parity.check(spec, "triton")


@cuda
@pytest.mark.parametrize(("given", "wanted"), rounding_laws.DTYPES)
def test_weights_are_rounded_as_astype_does(given, wanted):
    rounding_laws.check_rounding("triton", given, wanted)


@cuda
@pytest.mark.parametrize("spec", kernel_parity.FEATURES, ids=str)
def test_feature_norm(spec):
    kernel_parity.check(spec, "triton")


@cuda
@pytest.mark.parametrize("spec", kernel_parity.CROSS_ENTROPY, ids=str)
def test_linear_cross_entropy(spec):
    kernel_parity.check(spec, "triton")


@cuda
@pytest.mark.parametrize("spec", NORM_PRESETS, ids=str)
def test_timestep_norm_at_full_size(spec):
    kernel_parity.check(spec, "triton")


@cuda
@pytest.mark.parametrize(
    "spec",
    [*EMA_PRESETS, *ATTENTION_PRESETS, *ROTARY_PRESETS, *LINEAR_PRESETS, *FEATURE_PRESETS, *CROSS_ENTROPY_PRESETS],
    ids=lambda spec: f"{ops.of(spec).NAME}-{spec}",
)
def test_at_full_size(spec):
    """Against the reference: the oracle would keep every state of every step, and every score."""
    arrays = ops.of(spec).inputs(spec)
    found, expected = (parity.evaluate(spec, arrays, rung) for rung in ("triton", "xla"))
    for name, value in expected.items():
        assert_close(name, found[name], value, dtype=value.dtype.name)


LANES = (
    (test_timestep_norm, test_norm_kernels),
    (test_complex_ema, test_ema_kernels),
    (test_chunked_attention, test_attention_kernels),
    (test_normalized_rotary, test_rotary_kernels),
    (test_fused_linear, test_linear_kernels),
    (test_feature_norm, test_feature_kernels),
    (test_linear_cross_entropy, test_cross_entropy_kernels),
)


@pytest.mark.parametrize("lane", LANES)
def test_the_lanes_have_the_same_tests(lane):
    def specs(test):
        (mark,) = (mark for mark in test.pytestmark if mark.name == "parametrize")
        return [getattr(parameter, "values", (parameter,))[0] for parameter in mark.args[1]]

    here, elsewhere = lane
    assert specs(here) == specs(elsewhere.test_interpreted) == specs(elsewhere.test_lowered)
    assert len({spec.name for spec in specs(here)}) == len(specs(here)) > 10


@cuda
@pytest.mark.parametrize(
    "spec",
    [
        *(*kernel_parity.NORM, *kernel_parity.EMA, *kernel_parity.ATTENTION),
        *(*kernel_parity.ROTARY, *kernel_parity.LINEAR, *kernel_parity.FEATURES),
        *kernel_parity.CROSS_ENTROPY,
    ],
    ids=str,
)
def test_twice_is_bit_equal(spec):
    arrays = ops.of(spec).inputs(spec)
    first, second = (parity.evaluate(spec, arrays, "triton") for _ in range(2))
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@cuda
@pytest.mark.parametrize("statistics", norm_laws.STATISTICS)
@pytest.mark.parametrize("chunks", norm_laws.CHUNKS)
def test_norm_documents_never_touch(statistics, chunks):
    norm_laws.check_isolation("triton", statistics, chunks)


@cuda
@pytest.mark.parametrize("chunks", ema_laws.CHUNKS)
def test_ema_documents_never_touch(chunks):
    ema_laws.check_isolation("triton", chunks)


@cuda
@pytest.mark.parametrize("statistics", norm_laws.STATISTICS)
def test_no_normalised_token_depends_on_a_later_one(statistics):
    norm_laws.check_causality("triton", statistics)


@cuda
def test_no_averaged_token_depends_on_a_later_one():
    ema_laws.check_causality("triton")


@cuda
def test_masked_values_may_be_anything_where_they_give_nothing():
    norm_laws.check_masked_values("triton")
    for kind in ("mask", "segments"):
        ema_laws.check_masked_inputs("triton", kind)


@cuda
@pytest.mark.parametrize("tiles", norm_laws.LAUNCH_SHAPES)
def test_every_launch_shape_of_the_norm_gives_the_same(tiles):
    norm_laws.check_launch_shape("triton", tiles)


@cuda
@pytest.mark.parametrize("tiles", ema_laws.LAUNCH_SHAPES)
def test_every_launch_shape_of_the_ema_gives_the_same(tiles):
    ema_laws.check_launch_shape("triton", tiles)


@cuda
def test_attention_documents_never_touch():
    attention_laws.check_isolation("triton")


@cuda
def test_no_query_depends_on_a_later_token_or_another_chunk():
    attention_laws.check_causality("triton")


@cuda
@pytest.mark.parametrize("kind", ["mask", "segments"])
def test_masked_keys_may_hold_anything(kind):
    attention_laws.check_masked_keys("triton", kind)


@cuda
def test_masked_values_of_a_gate_may_hold_anything():
    attention_laws.check_masked_values_of_a_gate("triton")


@cuda
def test_any_split_of_attention_into_calls_gives_the_same():
    attention_laws.check_continuation("triton")


@cuda
@pytest.mark.parametrize("tiles", attention_laws.LAUNCH_SHAPES)
def test_every_launch_shape_of_attention_gives_the_same(tiles):
    attention_laws.check_launch_shape("triton", tiles)


@cuda
@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_differences_of_positions(interleaved):
    rotary_laws.check_shift("triton", interleaved)


@cuda
def test_rotated_tokens_never_touch():
    rotary_laws.check_isolation("triton")


@cuda
@pytest.mark.parametrize("tiles", rotary_laws.LAUNCH_SHAPES)
def test_every_launch_shape_of_rotary_gives_the_same(tiles):
    rotary_laws.check_launch_shape("triton", tiles)


@cuda
@pytest.mark.parametrize("kind", linear_laws.KINDS)
def test_rows_of_a_product_never_touch(kind):
    linear_laws.check_isolation("triton", **linear_laws.KINDS[kind])


@cuda
@pytest.mark.parametrize("kind", linear_laws.KINDS)
@pytest.mark.parametrize("tiles", linear_laws.LAUNCH_SHAPES)
def test_every_launch_shape_of_a_product_gives_the_same(tiles, kind):
    linear_laws.check_launch_shape("triton", tiles, **linear_laws.KINDS[kind])


@cuda
@pytest.mark.parametrize("centred", [False, True])
def test_scale_and_shift_of_features_make_no_difference(centred):
    feature_laws.check_invariance("triton", centred)


@cuda
def test_features_of_tokens_never_touch():
    feature_laws.check_isolation("triton")


@cuda
@pytest.mark.parametrize("tiles", feature_laws.LAUNCH_SHAPES)
def test_every_launch_shape_of_a_feature_norm_gives_the_same(tiles):
    feature_laws.check_launch_shape("triton", tiles)


@cuda
def test_tokens_of_a_loss_never_touch():
    cross_entropy_laws.check_isolation("triton")


@cuda
@pytest.mark.parametrize("dtype", cross_entropy_laws.DTYPES)
def test_tokens_of_factor_zero_may_hold_anything(dtype):
    cross_entropy_laws.check_what_does_not_count("triton", dtype)


@cuda
def test_logits_far_below_zero_give_no_nan():
    cross_entropy_laws.check_logits_far_below_zero("triton")


@cuda
@pytest.mark.parametrize("tiles", cross_entropy_laws.LAUNCH_SHAPES)
def test_every_launch_shape_of_a_loss_gives_the_same(tiles):
    cross_entropy_laws.check_launch_shape("triton", tiles)


@pytest.mark.parametrize(
    "laws",
    [norm_laws, ema_laws, attention_laws, rotary_laws, linear_laws, feature_laws, cross_entropy_laws, rounding_laws],
)
def test_the_lane_has_every_law(laws):
    here = Path(__file__).read_text()
    checks = [name for name in vars(laws) if name.startswith("check_")]
    assert checks
    assert not [name for name in checks if f'.{name}("triton"' not in here]


@cuda
def test_the_best_implementation_is_the_kernel():
    x, p, q, gamma, omega, _ = map(jnp.asarray, cases.ema(cases.rng(0), 2, 64, 32, 4))
    for name, f in {
        "timestep_norm_forward": lambda x: timestep_norm(x, num_groups=4),
        "complex_ema_forward": lambda x: complex_ema(x, p, q, gamma, omega),
        "chunked_attention_forward": lambda x: chunked_attention(*[x[:, :, None]] * 3, chunk_size=32),
        "normalized_rotary_forward": lambda x: normalized_rotary(
            x[:, :, None], *[jnp.ones((2, 1, 32))] * 2, positions=jnp.arange(64)
        ),
        "fused_linear_forward": lambda x: fused_linear(x, jnp.eye(32), residual=x),
        "feature_norm_forward": lambda x: feature_norm(x, centred=True),
        "linear_cross_entropy_forward": lambda x: linear_cross_entropy(
            x[0], jnp.eye(32), jnp.zeros(64, jnp.int32), jnp.ones(64)
        ),
    }.items():
        assert name in kernels_in(jax.jit(f).lower(x).compile())


@cuda
def test_attention_is_that_of_cudnn():
    """Other people's kernel by another formula; for head dims that it takes."""
    q, k, v = (jnp.asarray(cases.normal(cases.rng(0), 2, 256, 2, size), jnp.bfloat16) for size in (64, 64, 160))
    with jax.numpy_dtype_promotion("standard"):  # jax.nn mixes bfloat16 and float32
        expected = attention_by_value_tiles(q, k, v, chunk_size=128, implementation="cudnn")
    found = chunked_attention(q, k, v, chunk_size=128, implementation="triton")
    assert_close("o", found, expected, dtype="bfloat16")


@cuda
@pytest.mark.parametrize("dtype", kernel_parity.MODEL_DTYPES)
def test_model_with_kernels_on_and_off(dtype):
    kernel_parity.check_model(dtype, "triton")


@cuda
def test_stream_of_a_model():
    kernel_parity.check_stream("triton")
