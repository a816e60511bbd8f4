"""What the compilers take for each kernel of a program: every Pallas call is compiled as a program of its own."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

from bench.inspect import compile_program
from bench.targets import Verdict
from pallas_kernels import compile_for

GOAL = 30  # CPU seconds for a kernel


def kernel_seconds(function: Callable[..., Any], *avals: Any, target: str = "sm_90") -> dict[str, float]:
    """CPU seconds of XLA, Triton and ptxas for each Pallas call of `function(*avals)`, in its order.

    The second kernel of a name is "name, again" and so on: forward comes before backward, whatever the order in which
    XLA numbers them. The figures may come from the cache.
    """
    with compile_for(target):
        # A new function object: nothing traced for another platform may be found in a cache.
        program = jax.make_jaxpr(lambda *args: function(*args))(*avals)
    found: dict[str, float] = {}
    seen: Counter[str] = Counter()
    for call in _pallas_calls(program.jaxpr):
        compiled = compile_program(_alone(call), *(atom.aval for atom in call.invars), target=target, kernels="pallas")
        (name,) = compiled.pallas_kernels
        found[name + ", again" * seen[name]] = compiled.cpu_seconds
        seen[name] += 1
    return found


def verdicts(seconds: dict[str, float]) -> list[Verdict]:
    """One for each kernel."""
    return [
        Verdict(f"CPU s of the compilers, {kernel} alone <= {GOAL}", spent, spent <= GOAL)
        for kernel, spent in seconds.items()
    ]


def _pallas_calls(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
        else:
            for inner in core.jaxprs_in_params(equation.params):
                yield from _pallas_calls(inner)


def _alone(call: Any) -> Callable[..., Any]:
    def run(*arrays):
        with call.ctx.manager:  # the device that it is lowered for, from jax 0.11 on
            return call.primitive.bind(*arrays, **call.primitive.get_bind_params(call.params))

    return run
