"""Kernels refuse compilers that are known to be wrong for an architecture, by made-up entries: there is no real one."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import KernelUnavailable, _known_bad, compile_for, explain, feature_norm
from pallas_kernels._known_bad import KnownBad
from pallas_kernels._settings import TARGETS

X = jax.ShapeDtypeStruct((2, 8, 16), jnp.float32)


@pytest.fixture
def entries(monkeypatch):
    """Every jaxlib is bad for sm_90, one of them for sm_80."""
    always = KnownBad(("sm_90",), (0, 1), None, "sums are off by one (an issue)")
    once = KnownBad(("sm_80", "sm_89"), (0, 11), (0, 11, 2), "products are off by one (another issue)")
    monkeypatch.setattr(_known_bad, "KNOWN_BAD", (always, once))


@pytest.mark.usefixtures("entries")
@pytest.mark.parametrize(
    ("target", "jaxlib", "refused"),
    [
        ("sm_90", "0.10.2", True), ("sm_90", "99.0", True), ("sm_80", "0.10.2", False), ("sm_80", "0.11.0", True),
        ("sm_89", "0.11.1.dev20260618", True), ("sm_80", "0.11.2", False), ("sm_100", "0.11.0", False),
    ],
)  # fmt: skip
def test_versions(target, jaxlib, refused):
    reason = _known_bad.refuse(target, jaxlib)
    assert (reason is not None) == refused
    if target != "sm_90" and reason is not None:
        assert "products are off by one (another issue); jaxlib 0.11.2 is right" in reason
        assert f"jaxlib {jaxlib} is known to make wrong code for {target}" in reason


@pytest.mark.usefixtures("entries")
def test_kernels_refuse():
    with compile_for("sm_90"):
        rows = {row.implementation: row for row in explain(feature_norm, X, centred=True).rows}
        assert "sums are off by one" in rows["triton"].reason
        assert rows["xla"].chosen
        with pytest.raises(KernelUnavailable, match="sums are off by one"):
            jax.eval_shape(lambda x: feature_norm(x, centred=True, implementation="triton"), X)


def test_what_is_known_now():
    assert all(set(known.targets) <= set(TARGETS) and known.reason for known in _known_bad.KNOWN_BAD)
    assert all(_known_bad.refuse(target) is None for target in TARGETS)
