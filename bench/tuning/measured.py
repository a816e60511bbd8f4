"""What tiles cost on the GPU at hand: median milliseconds of the program that launches the kernel.

A kernel is measured in the forward where it is one of its kernels, else in the backward. Tiles whose results do not
agree with those of the first cost nothing, because they are never taken.
"""

from functools import cached_property
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench import ops
from bench.gpu.cases import differences
from bench.gpu.clock import comparable, interleaved
from bench.gpu.compare import ratio, verdict
from bench.gpu.session import Session
from bench.modes import BACKWARD, FORWARD, FORWARD_BACKWARD, Built, build, modes
from bench.ops import Spec
from pallas_kernels import use_tiles
from pallas_kernels._tiles import AnyTiles

ROUNDS = 5


class Measure:
    """Programs of one kernel of a problem with tiles to try."""

    def __init__(self, spec: Spec, kernel: str, session: Session):
        self._spec, self._kernel, self._session = spec, kernel, session
        backward = BACKWARD if BACKWARD in modes(spec) else FORWARD_BACKWARD
        self._mode = FORWARD if kernel == ops.of(spec).KERNELS[0] else backward
        self._expected: dict[str, Any] = {}

    def cost(self, tiles: AnyTiles) -> float:
        """Median milliseconds.

        Raises:
            ValueError: the kernel refuses the tiles, or its results with them are wrong.
        """
        built = self._with(tiles)
        _, times = comparable(interleaved({"": built.run}, ROUNDS, self._session.clock))
        return median(times[""])

    def faster(self, tiles: AnyTiles, than: AnyTiles) -> bool:
        """Measured side by side, is one faster than the other by more than noise?"""
        programs = {name: self._with(one).run for name, one in (("than", than), ("tiles", tiles))}
        _, times = comparable(interleaved(programs, self._session.rounds, self._session.clock))
        return verdict(*ratio(times["than"], times["tiles"])) == "faster"

    @cached_property
    def _inputs(self) -> dict[str, jax.Array]:
        return jax.tree.map(jnp.asarray, ops.of(self._spec).inputs(self._spec, self._session.seed))

    def _with(self, tiles: AnyTiles) -> Built:
        with use_tiles(**{self._kernel: tiles}):
            built = build(self._spec, self._mode, self._session.kernel or "xla", self._inputs, self._session.seed)
        values = jax.tree.map(np.asarray, built.values(built.run()))
        self._expected = self._expected or values  # of the tiles that come first
        if wrong := [one.name for one in differences(values, self._expected) if not one.within]:
            raise ValueError(f"results differ: {', '.join(wrong)}")
        return built
