"""Bad input to the model: a clear error at the Python boundary, and inside traced code when asked for."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from megalodon_jax.layers import ChunkedAttention, RotaryEmbedding, TimestepNorm, attention_single_chunk
from megalodon_jax.ops import linear_3d
from tests import models

pytestmark = pytest.mark.usefixtures("unhooked")

IDS = models.ids()
ONES = jnp.ones(IDS.shape, jnp.int32)


@pytest.mark.parametrize(
    ("kind", "message", "call"),
    [
        (ValueError, r"out-of-bounds.*\[0, 64\)", lambda m: m(IDS.at[0, 0].set(64))),
        (ValueError, "out-of-bounds", lambda m: m(IDS.at[0, 0].set(-1))),
        (ValueError, "empty", lambda m: m(IDS[:, :0])),
        (ValueError, "empty", lambda m: m(IDS[:0])),
        (ValueError, r"\[batch, length\]", lambda m: m(IDS[0])),
        (TypeError, "integer", lambda m: m(IDS.astype(jnp.float32))),
        (TypeError, "integer array, got list", lambda m: m([[1, 2]])),
        (TypeError, "bool", lambda m: m(IDS, ONES)),
        (ValueError, "attention_mask", lambda m: m(IDS, jnp.ones((2, 3), bool))),
        (ValueError, "segment_ids", lambda m: m(IDS, segment_ids=ONES[:, :5])),
        (ValueError, "negative", lambda m: m(IDS, segment_ids=-ONES)),
        (ValueError, "segment_ids cannot", lambda m: m(IDS, segment_ids=ONES, return_cache=True)),
        (ValueError, "position_ids cannot", lambda m: m(IDS, position_ids=ONES, return_cache=True)),
        (ValueError, "labels must have", lambda m: m.compute_loss(IDS, IDS[:, 1:])),
        (TypeError, "labels must be an integer", lambda m: m.compute_loss(IDS, IDS.astype(jnp.float32))),
        (ValueError, "labels contain", lambda m: m.compute_loss(IDS, IDS.at[0, 4].set(99))),
        (ValueError, "reduction", lambda m: m.compute_loss(IDS, IDS, reduction="max")),
        (ValueError, "loss_chunk_size", lambda m: m.compute_loss(IDS, IDS, loss_chunk_size=0)),
    ],
)
def test_model(kind, message, call):
    with pytest.raises(kind, match=message):
        call(models.build())


def test_labels_that_do_not_count_may_be_anything():
    model = models.build()
    labels = IDS.at[0, 4].set(-100).at[1, 2].set(9999)
    mask = jnp.ones(IDS.shape, bool).at[1, 2].set(False)
    assert jnp.isfinite(model.compute_loss(IDS, labels, mask))


def test_traced_values_are_checked_only_on_request():
    """Without `checks` the program holds no host callback; with it, a bad id is found at run time."""
    model = models.build(num_layers=1)
    run = eqx.filter_jit(lambda m, ids, checks: m(ids, checks=checks)[0])
    parameters, static = eqx.partition(model, eqx.is_array)

    def text(checks):
        f = lambda p, ids: eqx.combine(p, static)(ids, checks=checks)[0]  # noqa: E731
        return str(jax.make_jaxpr(f)(parameters, IDS))

    assert "callback" not in text(False)
    assert "callback" in text(True)
    run(model, IDS, True)
    with pytest.raises(Exception, match="out-of-bounds"):
        jax.block_until_ready(run(model, IDS.at[0, 0].set(64), True))


@pytest.mark.thorough
def test_traced_segment_ids_are_checked_on_request():
    run = eqx.filter_jit(lambda m, segments: m(IDS, segment_ids=segments, checks=True)[0])
    with pytest.raises(Exception, match="must not be negative"):
        jax.block_until_ready(run(models.build(num_layers=1), jnp.full(IDS.shape, -1)))


def test_layers():
    with pytest.raises(ValueError, match="even head dimension"):
        RotaryEmbedding(7)
    with pytest.raises(ValueError, match="divisible"):
        TimestepNorm(10, 3)
    norm = TimestepNorm(8, 2)
    with pytest.raises(ValueError, match="8 features"):
        norm(jnp.ones((1, 2, 6)))
    with pytest.raises(TypeError, match="float16"):
        norm(jnp.ones((1, 2, 8), jnp.float16))
    q = jnp.ones((1, 4, 1, 4))
    with pytest.raises(ValueError, match="PRNG key required"):
        attention_single_chunk(q, q, q, dropout_rate=0.1, deterministic=False)
    with pytest.raises(ValueError, match="PRNG key required"):
        ChunkedAttention(1, 4, 4, 4, attention_dropout=0.1)(q, q, q, deterministic=False)
    with pytest.raises(ValueError, match="gemm_backend"):
        linear_3d(eqx.nn.Linear(4, 4, key=jax.random.key(0)), q, jnp.float32, jnp.float32, "fp8")


def test_attention_of_nothing_is_zero():
    q, k = jnp.ones((1, 3, 1, 4)), jnp.ones((1, 5, 1, 4))
    assert attention_single_chunk(q[:, :0], k, k).shape == (1, 0, 1, 4)
    assert not attention_single_chunk(q, k[:, :0], k[:, :0]).any()
    # More queries than keys: the ends are aligned, so the first query sees no key.
    out = attention_single_chunk(k, q, q)
    assert not out[:, :2].any()
    assert bool((out[:, 2:] == 1).all())
