"""`doctor`: versions, devices, settings, and which implementation each op and each kind of product would use here."""

import argparse
import os
import platform
from importlib import metadata

import jax
import jax.numpy as jnp

import pallas_kernels
from megalodon_jax import low_precision

_PACKAGES = (
    "megalodon-pallas", "jax", "jaxlib", "equinox", "numpy", "optax", "safetensors", "rich", "matplotlib", "pyyaml",
    "orbax-checkpoint", "tensorboardx", "torch",
)  # fmt: skip
_PREFIX = "PALLAS_KERNELS_"
NO_DEVICES = (RuntimeError, AssertionError)  # what jax raises where no platform starts
_UNKNOWN = "unknown: no devices"


def add_parser(subcommands) -> None:
    """Declare the subcommand."""
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "doctor", help="show versions, devices and kernels", description="Show versions, devices and kernels."
    )
    parser.set_defaults(run=lambda options: print(report()))


def report() -> str:
    """The whole table as plain text."""
    versions = [("python", platform.python_version()), *((name, _version(name)) for name in _PACKAGES)]
    variables = sorted(item for item in os.environ.items() if item[0].startswith((_PREFIX, "JAX_PLATFORMS")))
    try:
        devices, reason = jax.devices(), ""
    except NO_DEVICES as error:  # a GPU plugin that does not start; the rest of the report is what helps then
        devices, reason = [], why(error)
    ops = _ops() if devices else _UNKNOWN
    found = _table([(f"{d.platform}:{d.id}", d.device_kind) for d in devices])
    sections = [
        ("versions", _table(versions)),
        ("devices", found or f"  none: {reason}"),
        (f"environment {_PREFIX}*, JAX_PLATFORMS", _table(variables) or "  none set"),
        ("gemm_backend", _matmuls(devices)),
        ("ops, at a small shape", "\n".join(f"  {line}" for line in ops.splitlines())),
    ]
    return "\n".join(f"{title}\n{body}" for title, body in sections)


def why(error: Exception) -> str:
    """What jax says where it has no device, and the setting that it goes by, in one line."""
    said = " ".join(str(error).split()) or "none of the platforms that jax was told to use starts"
    platforms = os.environ.get("JAX_PLATFORMS")
    return f"{said} (JAX_PLATFORMS={platforms} is set)" if platforms else said


def _table(rows: list[tuple[str, str]]) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _matmuls(devices: list) -> str:
    support = _UNKNOWN
    if devices:
        support = low_precision.support(devices[0].platform, getattr(devices[0], "compute_capability", ""))
    fused = "compute_dtype, by fused_linear, round_weights and linear_cross_entropy"
    return _table(
        [("default", "compute_dtype"), ("fused", fused), *((name, support) for name in low_precision.FORMATS)]
    )


def _ops() -> str:
    def array(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    batch, length, dim, states = 2, 256, 128, 16
    x, p = array(batch, length, dim), array(dim, states)
    q = array(dim, states, dtype=jnp.complex64)
    queries = array(batch, length, 1, 64)
    explanations = (
        pallas_kernels.explain(pallas_kernels.complex_ema, x, p, q, q, array(dim)),
        pallas_kernels.explain(pallas_kernels.timestep_norm, x, array(dim), array(dim), num_groups=32),
        pallas_kernels.explain(pallas_kernels.chunked_attention, queries, queries, queries, chunk_size=128),
        pallas_kernels.explain(
            pallas_kernels.normalized_rotary,
            queries,
            *[array(2, 1, 64)] * 2,
            positions=array(length, dtype=jnp.int32),
        ),
        pallas_kernels.explain(pallas_kernels.fused_linear, x, array(dim, dim)),
        pallas_kernels.explain(pallas_kernels.round_weights, array(dim, dim), array(dim, dim)),
        pallas_kernels.explain(
            pallas_kernels.linear_cross_entropy,
            array(length, dim),
            array(dim, dim),
            array(length, dtype=jnp.int32),
            array(length),
        ),
        pallas_kernels.explain(pallas_kernels.feature_norm, x, array(dim), array(dim), centred=True),
    )
    return "\n".join(map(str, explanations))
