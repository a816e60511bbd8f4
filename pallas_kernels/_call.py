"""The static part of a call that kernels run, and the choice between them and the reference by platform."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from pallas_kernels._platform import kernel_or_reference
from pallas_kernels._tiles import Plan

Problem = TypeVar("Problem")


@dataclass(frozen=True)
class Call(Generic[Problem]):
    """The static part of a call; `problem` holds the op's sizes and options but one: whether a state is returned."""

    plan: Plan
    problem: Problem
    return_state: bool = False

    def by_platform(self, kernel: Callable, reference: Callable, *arrays: Any) -> Any:
        """`kernel(self, *arrays)`; under a portable plan `reference` where the program is not lowered for CUDA."""
        if not self.plan.portable:
            return kernel(self, *arrays)
        return kernel_or_reference(partial(kernel, self), partial(reference, self), *arrays)
