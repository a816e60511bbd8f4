"""Execute a whole JAX function on the CPU with each of its Triton kernels run from the lowered IR.

The function is traced for a GPU target and its jaxpr walked: a `pallas_call` is lowered for cuda and interpreted, all
else runs as JAX runs it on the CPU. What is compiled for the GPU is thereby what is checked, backward passes included.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from bench.inspect.lowering import TritonCall, lower_for_cuda, triton_calls
from bench.inspect.triton_ir.interpreter import run_kernel
from bench.inspect.triton_ir.mlir import UnsupportedOperation
from bench.inspect.triton_ir.report import Report
from pallas_kernels import compile_for

# Primitives that only call an inner jaxpr, and the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "custom_lin": "call_jaxpr",
    "eval_jaxpr": "call_jaxpr",
    "kernel_or_reference": "kernel",  # pallas_kernels' own choice of platform
}


def execute(
    function: Callable, *arrays: Any, target: str = "sm_90", seed: int = 0, collect: bool = False
) -> tuple[Any, list[Report]]:
    """`function(*arrays)` as on the GPU architecture `target`, and one report per kernel launch, in program order.

    `jit`, `vmap`, `grad`, `custom_vjp`, `remat`, `scan`, `cond` and `lax.platform_dependent` may contain kernels (of
    the last the cuda branch runs); a `while` with a kernel inside may not. To check a backward pass, execute a function
    that calls `jax.vjp` or `jax.grad`.

    Args:
        seed: of the order in which grid cells run; each launch has its own order.
        collect: keep faults in the reports, where the default is to raise the first.

    Raises:
        KernelFault: see `FaultKind`.
        UnsupportedOperation: a kernel uses an operation the interpreter does not know, or a kernel sits in a while loop
            or another construct that is not listed above.
    """
    walk = _Walk(seed, collect)
    with compile_for(target):
        # make_jaxpr of a new function object: nothing traced for another platform may be found in a cache.
        closed, shape = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*arrays)
        results = walk.run(closed, [jnp.asarray(leaf) for leaf in jax.tree.leaves(arrays)])
    return jax.tree.unflatten(jax.tree.structure(shape), results), walk.reports


class _Walk:
    """Evaluates jaxprs and collects the reports of the kernels met."""

    def __init__(self, seed: int, collect: bool):
        self.reports: list[Report] = []
        self._seed, self._collect = seed, collect
        self._lowered: dict[int, tuple[Any, TritonCall]] = {}  # by equation, kept so that its id stays its own

    def run(self, jaxpr: Any, arguments: Sequence[Any]) -> list[Any]:
        """Evaluate a jaxpr, closed or (without constants) open."""
        consts, jaxpr = getattr(jaxpr, "consts", ()), getattr(jaxpr, "jaxpr", jaxpr)
        values = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else values[atom]

        for equation in jaxpr.eqns:
            results = self._equation(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Any]) -> Sequence[Any]:
        name, params = equation.primitive.name, equation.params
        if name == "platform_index":
            return [_cuda_branch(params["platforms"])]
        if name == "cond":  # its index may come from platform_index, and here every value is known
            index, *arguments = inputs
            return self.run(params["branches"][int(np.clip(int(index), 0, len(params["branches"]) - 1))], arguments)
        if not _special(equation):
            results = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(params))
            return results if equation.primitive.multiple_results else [results]
        if name == "pallas_call":
            return self._kernel(equation, inputs)
        if name == "scan":
            return self._scan(params, inputs)
        if name in _CALLS:
            return self.run(params[_CALLS[name]], inputs)
        raise UnsupportedOperation(f"execute: a Pallas kernel inside {name} cannot be run.")

    def _kernel(self, equation: Any, inputs: list[Any]) -> list[Any]:
        if id(equation) not in self._lowered:
            self._lowered[id(equation)] = equation, _lower(equation, inputs)
        call = self._lowered[id(equation)][1]
        seed = self._seed + len(self.reports)
        arrays = [np.asarray(value) for value in inputs]
        outputs, report = run_kernel(call, arrays, seed=seed, collect=self._collect)
        self.reports.append(report)
        return [jnp.asarray(value) for value in outputs]

    def _scan(self, params: dict[str, Any], inputs: list[Any]) -> list[Any]:
        num_consts, num_carry = _scan_groups(params)
        consts, carry, xs = inputs[:num_consts], inputs[num_consts:][:num_carry], inputs[num_consts + num_carry :]
        steps = range(params["length"])
        rows: list[list[Any]] = []
        for i in reversed(steps) if params["reverse"] else steps:
            results = self.run(params["jaxpr"], [*consts, *carry, *(x[i] for x in xs)])
            carry = results[:num_carry]
            rows.append(results[num_carry:])
        if params["reverse"]:
            rows.reverse()
        if not rows:
            raise UnsupportedOperation("execute: a scan of length 0 around a Pallas kernel cannot be run.")
        return [*carry, *(jnp.stack(column) for column in zip(*rows, strict=True))]


def _special(equation: Any) -> bool:
    """Must the walk see to this equation: a kernel, or a choice of platform, is it or lies inside it?"""
    if equation.primitive.name == "pallas_call":
        return not equation.params["interpret"]
    if equation.primitive.name == "platform_index":
        return True
    return any(_special(inner) for jaxpr in core.jaxprs_in_params(equation.params) for inner in jaxpr.eqns)


def _cuda_branch(platforms: Sequence[Sequence[str] | None]) -> int:
    """Index of the branch of `lax.platform_dependent` that cuda takes; None is the default branch."""
    for index, names in enumerate(platforms):
        if names is None or "cuda" in names:
            return index
    raise UnsupportedOperation(f"execute: platform_dependent has no branch for cuda among {platforms}.")


def _scan_groups(params: dict[str, Any]) -> tuple[int, int]:
    """Number of constants and of carried values; jax 0.12 keeps them in a tree."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = (len(group) for group in params["ft_in"].unpack())
    return consts, carry


def _lower(equation: Any, inputs: Sequence[Any]) -> TritonCall:
    """The kernel of a `pallas_call` equation, under the mesh context it was traced in."""

    def bind(*arrays: Any) -> Any:
        with _abstract_gpu():
            return equation.primitive.bind(*arrays, **equation.params)

    [call] = triton_calls(lower_for_cuda(bind, *inputs))
    return call


def _abstract_gpu() -> contextlib.AbstractContextManager[Any]:
    """jax >= 0.11 asks the mesh which GPU a kernel is lowered for; the architecture does not change the Triton IR."""
    if not hasattr(jax.sharding, "AbstractDevice"):
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="cuda")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("_",), abstract_device=device))
