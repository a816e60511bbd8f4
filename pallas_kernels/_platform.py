"""`kernel_or_reference`: the kernel where a program is lowered for CUDA, the reference on every other platform.

`lax.platform_dependent` says the same for a program of one platform. For several at once (`jax.export` with
platforms=("cpu", "cuda")) it lowers every branch for every platform, and a kernel has no lowering for CPU. This
primitive lowers each branch for its own platform alone. It has no derivative: it stands inside custom_vjp rules.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import batching, mlir

_choice = core.Primitive("kernel_or_reference")
_choice.multiple_results = True


def kernel_or_reference(kernel: Callable, reference: Callable, *args: Any) -> Any:
    """`kernel(*args)` on CUDA, `reference(*args)` elsewhere; both return the same structure of arrays."""
    flat, structure = jax.tree.flatten(args)

    def trace(function: Callable):
        closed, shape = jax.make_jaxpr(
            lambda *leaves: function(*jax.tree.unflatten(structure, leaves)), return_shape=True
        )(*flat)
        return closed, jax.tree.structure(shape)

    (kernel_jaxpr, _), (reference_jaxpr, result) = trace(kernel), trace(reference)
    return jax.tree.unflatten(result, _choice.bind(*flat, kernel=kernel_jaxpr, reference=reference_jaxpr))


@_choice.def_impl
def _run(*args, **branches):
    return jax.jit(lambda *args: _choice.bind(*args, **branches))(*args)


@_choice.def_abstract_eval
def _shapes(*args, kernel, reference):
    return reference.out_avals


def _batch(args: Sequence, dims: Sequence, **branches):
    def mapped(closed):
        return jax.make_jaxpr(jax.vmap(core.jaxpr_as_fun(closed), in_axes=tuple(dims)))(*args)

    results = _choice.bind(*args, **{name: mapped(closed) for name, closed in branches.items()})
    return results, (0,) * len(results)


batching.primitive_batchers[_choice] = _batch


def _lower(branch: str):
    def rule(ctx: mlir.LoweringRuleContext, *args, **branches):
        # A context for this rule's own platforms, with caches of its own: what they hold depends on the platforms.
        module = ctx.module_context.replace(
            platforms=tuple(ctx.platforms or ctx.module_context.platforms),
            lowering_cache={}, cached_primitive_lowerings={}, pallas_lowering_cache={},
        )  # fmt: skip
        run = mlir.lower_fun(core.jaxpr_as_fun(branches[branch]), multiple_results=True)
        return run(ctx.replace(module_context=module), *args)

    return rule


mlir.register_lowering(_choice, _lower("reference"))
mlir.register_lowering(_choice, _lower("kernel"), platform="cuda")
