"""The reference ops against the PyTorch oracle in float64: values, states and autograd's gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import chunked_attention, complex_ema, timestep_norm
from tests import cases, models
from tests.tolerance import assert_close, errors

torch = pytest.importorskip("torch", reason="torch is not installed")
LENGTH = 45


def double(a):
    a = np.asarray(a)
    return torch.tensor(a.astype(np.complex128 if np.iscomplexobj(a) else np.float64), requires_grad=True)


def plain(tokens):
    return {name: torch.tensor(np.asarray(value)) for name, value in tokens.items()}


def compare(names, arrays, ours, theirs, r):
    """Values and gradients of every output of `ours(*arrays)` and `theirs(*arrays)` under random cotangents."""
    values, pullback = jax.vjp(ours, *map(jnp.asarray, arrays))
    inputs = [double(a) for a in arrays]
    truth = theirs(*inputs)
    cotangents = [
        cases.complex_normal(r, *v.shape) if jnp.iscomplexobj(v) else cases.normal(r, *v.shape) for v in values
    ]
    for value, expected in zip(values, truth, strict=True):
        assert_close("value", value, expected.detach().numpy())
    total = sum((torch.real(torch.conj(torch.tensor(c)) * v)).sum() for c, v in zip(cotangents, truth, strict=True))
    total.backward()
    # PyTorch's complex gradients are the conjugates of JAX's.
    gradients = pullback(tuple(jnp.conj(jnp.asarray(c)) for c in cotangents))
    for name, gradient, given in zip(names, gradients, inputs, strict=True):
        assert_close(f"d{name}", np.conj(gradient), given.grad.numpy(), units=300)


@pytest.mark.parametrize("kind", cases.KINDS)
def test_complex_ema(kind, torch_oracle):
    r = cases.rng(0)
    arrays, tokens = cases.ema(r, 2, LENGTH, 3, 4), cases.tokens(r, kind, 2, LENGTH)
    compare(
        ("x", "p", "q", "gamma", "omega", "h0"),
        arrays,
        lambda *a: complex_ema(*a[:5], h0=a[5], return_state=True, **tokens),
        lambda *a: torch_oracle.complex_ema(*a[:5], h0=a[5], **plain(tokens)),
        r,
    )


@pytest.mark.parametrize("statistics", ["token_mean", "all_features"])
@pytest.mark.parametrize("kind", cases.KINDS)
def test_timestep_norm(kind, statistics, torch_oracle):
    r = cases.rng(1)
    tokens = cases.tokens(r, kind, 2, LENGTH)
    count, mean, var = cases.norm_state(r, 2, 4)
    arrays = (cases.normal(r, 2, LENGTH, 12), cases.normal(r, 12), cases.normal(r, 12), mean, var)
    options = {"num_groups": 4, "statistics": statistics}

    def ours(x, weight, bias, mean, var):
        state = (jnp.asarray(count), mean, var)
        y, (_, m, v) = timestep_norm(x, weight, bias, state=state, return_state=True, **options, **tokens)
        return y, m, v

    def theirs(x, weight, bias, mean, var):
        state = (torch.tensor(count), mean, var)
        y, (_, m, v) = torch_oracle.timestep_norm(x, weight, bias, state=state, **options, **plain(tokens))
        return y, m, v

    compare(("x", "weight", "bias", "mean", "var"), arrays, ours, theirs, r)


@pytest.mark.parametrize("kind", cases.KINDS)
def test_chunked_attention(kind, torch_oracle):
    r = cases.rng(2)
    tokens = cases.tokens(r, kind, 2, LENGTH)
    compare(
        ("q", "k", "v"),
        [cases.normal(r, 2, LENGTH, 2, width) for width in (6, 6, 10)],
        lambda *a: (chunked_attention(*a, chunk_size=8, **tokens),),
        lambda *a: (torch_oracle.chunked_attention(*a, chunk_size=8, **plain(tokens)),),
        r,
    )


def test_model_in_float32_and_bfloat16(torch_oracle):
    """The two libraries agree in low precision as well as low precision allows."""
    ids = models.ids()
    for dtype, low, bound in ((torch.float32, jnp.float32, 1e-5), (torch.bfloat16, jnp.bfloat16, 0.03)):
        model = models.build(compute_dtype=low)
        with torch.no_grad():
            truth, _ = models.to_torch(model, torch_oracle, dtype)(torch.tensor(np.asarray(ids), dtype=torch.long))
        assert errors(model(ids)[0].astype(jnp.float32), truth.float().numpy())[0] < bound
