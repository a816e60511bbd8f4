"""The only place that imports Pallas' Triton backend: launches, loads and stores, and why it cannot run.

Kernels get whole arrays as refs and index them by explicit row and column numbers, so that ragged lengths and group
sizes that are no power of two are masks, not padded copies.
"""

import contextlib
import importlib
import re
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import _known_bad
from pallas_kernels._architecture import Architecture, architecture
from pallas_kernels._settings import Settings
from pallas_kernels._tiles import AnyTiles, Plan

pl: Any = None
plt: Any = None
IMPORT_ERROR: str | None = None
try:
    pl = importlib.import_module("jax.experimental.pallas")
    plt = importlib.import_module("jax.experimental.pallas.triton")
except ImportError as error:  # a jax without this backend
    IMPORT_ERROR = f"jax.experimental.pallas.triton cannot be imported ({error})"

MatrixProduct = Callable[[jax.Array, jax.Array], jax.Array]

# Deprecated upstream since jax 0.11, still there in 0.12; the warning comes up wherever a program is lowered.
warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)


def refuse(settings: Settings, x) -> str | None:
    """Why no compiled kernel can run for these settings and this input, or None."""
    found = architecture(settings)
    return found if isinstance(found, str) else _known_bad.refuse(found.name) or refuse_interpreted(settings, x)


def refuse_interpreted(settings: Settings, x) -> str | None:
    """Why a kernel cannot even be interpreted, or None."""
    if IMPORT_ERROR is None and jax.typeof(x).manual_axis_type.varying:
        return "inside shard_map a kernel needs check_vma=False; pass it to jax.shard_map"
    return IMPORT_ERROR


def launch(
    kernel: Callable[[SimpleNamespace], None],
    name: str,
    grid: Sequence[int],
    inputs: Mapping[str, jax.Array | None],
    outputs: Mapping[str, jax.ShapeDtypeStruct | None],
    tiles: AnyTiles,
    plan: Plan,
    *,
    aliases: Mapping[str, str] = types.MappingProxyType({}),
) -> SimpleNamespace:
    """Run `kernel` on every cell of the grid.

    The kernel gets one namespace with a ref for every input and output, by name, None where the input or output is
    None. Returns the outputs the same way. `aliases` names the input whose memory an output is written to: a program
    may only read there what it is to write itself.
    """
    present = {key: array for key, array in inputs.items() if array is not None}
    wanted = {key: shape for key, shape in outputs.items() if shape is not None}
    nothing = dict.fromkeys((*inputs, *outputs))

    def body(*refs):
        kernel(SimpleNamespace(**{**nothing, **dict(zip((*present, *wanted), refs, strict=True))}))

    body.__name__ = body.__qualname__ = name  # the name the compiled kernel carries
    call = pl.pallas_call(
        body,
        name=name,
        grid=tuple(grid),
        out_shape=tuple(wanted.values()),
        interpret=plan.interpret,
        input_output_aliases={list(present).index(given): list(wanted).index(out) for out, given in aliases.items()},
        compiler_params=plt.CompilerParams(num_warps=tiles.num_warps, num_stages=tiles.num_stages),
    )
    with _abstract_device(plan), jax.enable_x64(False):  # indices are 32-bit whatever the caller's default is
        results = call(*present.values())
    return SimpleNamespace(**{**nothing, **dict(zip(wanted, results, strict=True))})


def _abstract_device(plan: Plan):
    """What jax 0.11 and later need, around the bind alone, to lower for a GPU that is not there."""
    version = tuple(map(int, re.findall(r"\d+", jax.__version__)[:2]))
    if plan.target is None or plan.interpret or version < (0, 11):
        return contextlib.nullcontext()
    from jax.sharding import AbstractDevice, AbstractMesh, get_abstract_mesh, use_abstract_mesh

    device = AbstractDevice(device_kind=Architecture.of(plan.target).device_kind, num_cores=None, platform="cuda")
    mesh = get_abstract_mesh()
    if mesh.empty:
        return use_abstract_mesh(AbstractMesh((1,), ("_",), abstract_device=device))
    same = AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=mesh.axis_types, abstract_device=device)
    return use_abstract_mesh(same)


def fused_multiply_add(plan: Plan) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """(a, b, c) -> a b + c of float32 vectors, rounded once. The lowering fuses no product with a sum by itself.

    The interpreter has no such instruction and takes float64, in which the product is exact.
    """
    if plan.interpret:

        def in_float64(a, b, c):
            with jax.enable_x64(True):
                a, b, c = (part.astype(jnp.float64) for part in (a, b, c))
                return (a * b + c).astype(jnp.float32)

        return in_float64

    def fma(a, b, c):
        (result,) = plt.elementwise_inline_asm(
            "fma.rn.f32 $0, $1, $2, $3;",
            args=(a, b, c),
            constraints="=f,f,f,f",
            pack=1,
            result_shape_dtypes=[jax.ShapeDtypeStruct(a.shape, a.dtype)],
        )
        return result

    return fma


def matrix_product(plan: Plan, precision: str | None) -> MatrixProduct:
    """(a, b) -> a b of two tiles of one dtype, summed in float32.

    float32 operands are split into three bfloat16 numbers each, 24 bits in all, of whose products the six largest are
    taken: three TF32 products cost as much and are four times as coarse. Under precision "tf32" there is one of those.
    The interpreter multiplies in float32.
    """
    if plan.interpret:
        chosen = jax.lax.Precision.HIGHEST
    elif precision == "tf32":
        chosen = jax.lax.DotAlgorithmPreset.TF32_TF32_F32
    else:
        chosen = jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X6

    def product(a, b):
        exact = chosen if a.dtype == jnp.float32 else None  # bfloat16 products are exact in float32
        return jnp.dot(a, b, precision=exact, preferred_element_type=jnp.float32)

    return product


def barrier(plan: Plan) -> Callable[[], None]:
    """What makes memory written by any thread of a program visible to its others; the interpreter has one thread."""
    return (lambda: None) if plan.interpret else plt.debug_barrier


def rows(tile) -> list[jax.Array]:
    """The rows of a tile [T, S], T a power of two."""
    return [row.reshape(tile.shape[1:]) for row in jax.lax.split(tile, (1,) * tile.shape[0], axis=0)]


def stack_rows(parts: Sequence[jax.Array]) -> jax.Array:
    """[T, S] from T rows [S], T a power of two: the lowering joins two at a time, along a last axis."""

    def join(parts):
        if len(parts) == 1:
            return parts[0][:, None]
        return jnp.stack([join(parts[0::2]), join(parts[1::2])], axis=-1).reshape(parts[0].size, len(parts))

    return join(list(parts)).T


def load(ref, index, mask=None):
    """Elements of a ref, 0 where the mask is False; masked positions may lie outside the array."""
    if mask is None:
        return plt.load(ref.at[index])
    return plt.load(ref.at[index], mask=mask, other=jnp.zeros((), ref.dtype))


def store(ref, index, value, mask=None) -> None:
    """Write elements of a ref, in its dtype, where the mask is True."""
    plt.store(ref.at[index], value.astype(ref.dtype), mask=mask)
