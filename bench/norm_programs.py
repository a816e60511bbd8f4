"""The timestep_norm programs that are inspected: arrays of a spec by name in, results out.

forward             (inputs) -> y; for a spec with a state, (y, new state)
forward+backward    (dy, inputs) -> (y, all gradients)
"""

from collections.abc import Callable

import jax

from bench.programs import MODES
from pallas_kernels import timestep_norm
from pallas_kernels.timestep_norm.specs import Spec

FORWARD, FORWARD_BACKWARD = MODES
_MOVING = ("x", "weight", "bias", "mean", "var")

Arrays = dict[str, jax.ShapeDtypeStruct]


def program(spec: Spec, mode: str, implementation: str) -> tuple[Callable, Arrays]:
    """A program of `spec` and its abstract argument."""
    arrays = spec.arrays()
    if mode == FORWARD:
        del arrays["dy"]
        return lambda arrays: _norm(spec, implementation, arrays, return_state=spec.state), arrays

    def forward_backward(arrays):
        moving = {name: arrays[name] for name in _MOVING if name in arrays}
        y, pullback = jax.vjp(lambda moving: _norm(spec, implementation, arrays | moving), moving)
        return y, pullback(arrays["dy"])[0]

    return forward_backward, arrays


def _norm(spec: Spec, implementation: str, arrays: dict, *, return_state: bool = False):
    return timestep_norm(
        arrays["x"],
        arrays.get("weight"),
        arrays.get("bias"),
        num_groups=spec.groups,
        state=(arrays["count"], arrays["mean"], arrays["var"]) if spec.state else None,
        mask=arrays.get("mask"),
        segment_ids=arrays.get("segment_ids"),
        statistics=spec.statistics,
        return_state=return_state,
        implementation=implementation,
    )
