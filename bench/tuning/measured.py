"""What tiles cost on the GPU at hand: median milliseconds of the program that launches the kernel.

A kernel is measured in the forward where it is one of its kernels, else in the backward. Tiles whose results do not
agree with those of the heuristic's cost nothing, because they are never taken.
"""

from collections.abc import Callable
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
        op = ops.of(spec)
        inputs = jax.tree.map(jnp.asarray, op.inputs(spec, session.seed))
        backward = BACKWARD if BACKWARD in modes(spec) else FORWARD_BACKWARD
        mode = FORWARD if kernel == op.KERNELS[0] else backward
        implementation = session.kernel or "xla"
        self._session, self._kernel = session, kernel
        self._build: Callable[[], Built] = lambda: build(spec, mode, implementation, inputs, session.seed)
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

    def _with(self, tiles: AnyTiles) -> Built:
        with use_tiles(**{self._kernel: tiles}):
            built = self._build()
        values = jax.tree.map(np.asarray, built.values(built.run()))
        self._expected = self._expected or values  # of the tiles that come first: the heuristic's
        if wrong := [one.name for one in differences(values, self._expected) if not one.within]:
            raise ValueError(f"results differ: {', '.join(wrong)}")
        return built
