"""The same program in float64: every float32 of a traced function becomes float64, every complex64 complex128.

The model computes norms, EMA and angles in float32 whatever it is asked for. That is what its program says, so the
program is traced as it is, and each of its operations done on wider numbers.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np

core: Any = jax.extend.core  # whose types are others in each version of jax

_WIDER = {np.dtype(np.float32): np.dtype(np.float64), np.dtype(np.complex64): np.dtype(np.complex128)}

# Operations that do nothing but call a program, and which parameter that is; it becomes part of the one that calls.
_CALLS = {
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


def widened(function: Callable, *arguments: Any, exact: Iterable[float] = ()) -> Callable:
    """`function`, traced on arrays like `arguments`, as a compiled function of float64; call it under `enable_x64`.

    Args:
        function: of trees of arrays, not yet differentiated any further.
        arguments: what it is given, or the like.
        exact: numbers that constants of the program stand for, which hold them as float32 does. Others stay rounded.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    structure, program = jax.tree.structure(shapes), _Program(exact)

    @jax.jit
    def wide(*arguments):
        return jax.tree.unflatten(structure, program.evaluate(closed, jax.tree.leaves(to_float64(arguments))))

    return wide


def to_float64(tree: Any) -> Any:
    """Arrays with wider numbers in them; call it under `enable_x64`."""
    return jax.tree.map(lambda a: jnp.asarray(a, _wider(a.dtype)), tree)


class _Program:
    def __init__(self, exact: Iterable[float]):
        self._exact = tuple(exact)

    def evaluate(self, closed: Any, arguments: list) -> list:
        jaxpr, values = closed.jaxpr, {}

        def read(atom: Any) -> Any:
            return self._constant(atom.val, atom.aval.dtype) if isinstance(atom, core.Literal) else values[atom]

        values.update((v, self._constant(a, v.aval.dtype)) for v, a in zip(jaxpr.constvars, closed.consts, strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))
        for equation in jaxpr.eqns:
            inputs, name = [read(atom) for atom in equation.invars], equation.primitive.name
            if name in _CALLS:
                outputs = self.evaluate(_closed(equation.params[_CALLS[name]]), inputs)
            else:
                parameters = {key: self._parameter(value) for key, value in equation.params.items()}
                outputs = equation.primitive.bind(*inputs, **parameters)
                outputs = outputs if equation.primitive.multiple_results else [outputs]
            values.update(zip(equation.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _parameter(self, value: Any) -> Any:
        """Of an operation: a dtype, or the programs of a loop, a condition or a reduction."""
        if isinstance(value, core.Jaxpr) and not isinstance(value, core.ClosedJaxpr):  # from jax 0.12 on both are one
            return self._parameter(_closed(value)).jaxpr
        if isinstance(value, core.ClosedJaxpr):
            shapes = [jax.ShapeDtypeStruct(v.aval.shape, _wider(v.aval.dtype)) for v in value.jaxpr.invars]
            return jax.make_jaxpr(lambda *arguments: self.evaluate(value, list(arguments)))(*shapes)
        if type(value) is tuple:
            return tuple(map(self._parameter, value))
        return _wider(value) if isinstance(value, np.dtype) else value

    def _constant(self, value: Any, dtype: Any) -> Any:
        if dtype not in _WIDER:
            return np.asarray(value, dtype) if isinstance(dtype, np.dtype) else value
        narrow = np.asarray(value, dtype)
        wide = np.array(narrow, _WIDER[dtype])
        for number in self._exact:
            wide[narrow == np.float32(number)] = number
        return wide


def _closed(program: Any) -> Any:
    return program if isinstance(program, core.ClosedJaxpr) else core.ClosedJaxpr(program, ())


def _wider(dtype: Any) -> Any:
    return _WIDER.get(dtype, dtype)
