"""Laws of fused_linear, on any rung: rows never touch, to the bit; any launch shape gives the same."""

import jax
import jax.numpy as jnp
import numpy as np

from bench import parity
from bench.ops.linear import KERNELS
from pallas_kernels import LinearTiles, fused_linear, use_tiles
from tests import cases

LAUNCH_SHAPES = (
    LinearTiles(16, 32, 16, 1, 1, num_splits=2),
    LinearTiles(64, 16, 32, 4, 2, num_splits=9),
    LinearTiles(32, 64, 64, 8, 3),
)
LENGTH = 37
KINDS = {"one layer": {}, "gate": {"gate": True}, "several layers": {"outputs": (35, 16, 5), "gate": True}}


def launched(tiles: LinearTiles):
    """All kernels launched with these tiles."""
    return use_tiles(**dict.fromkeys(KERNELS, tiles))


def arrays(seed: int, outputs: tuple[int, ...] = (35,), gate: bool = False) -> dict:
    """Arguments of the op, and dys: two rows, 50 features, layers of these outputs."""
    r = cases.rng(seed)
    draw = lambda *shape: jnp.asarray(cases.normal(r, *shape))  # noqa: E731
    of_layers = {"weight": [(size, 50) for size in outputs], "bias": [(size,) for size in outputs]}
    of_layers |= {name: [(2, LENGTH, size) for size in outputs] for name in ("residual", "dys")}
    front = {"x": draw(2, LENGTH, 50), "x_bias": draw(50)}
    front |= {"gate": draw(2, LENGTH, 50), "gate_bias": draw(50)} if gate else {}
    return front | {name: tuple(draw(*shape) for shape in shapes) for name, shapes in of_layers.items()}


def with_gradients(implementation, given):
    """ys, and the gradients by name."""
    moving = {name: array for name, array in given.items() if name != "dys"}
    ys, pullback = jax.vjp(
        lambda moving: fused_linear(**moving, activation="silu", implementation=implementation), moving
    )
    return ys, pullback(given["dys"])[0]


def check_isolation(rung: str, **options) -> None:
    """Changing one token of x, or of the gate, or making it NaN, changes no bit of what another has: y, dx, dgate."""

    def of_tokens(given):
        ys, gradients = parity.run(rung, with_gradients, given)
        return *ys, *(gradients[name] for name in ("x", "gate") if name in gradients)

    given = arrays(0, **options)
    with launched(LinearTiles(16, 32, 16, 4, 1)):
        before = of_tokens(given)
        for name in given.keys() & {"x", "gate"}:
            for value in (jnp.nan, 1e4):
                after = of_tokens(given | {name: given[name].at[:, 20].set(value)})
                for old, new in zip(before, after, strict=True):
                    changed = (old != new).any(-1)
                    assert changed[:, 20].all()
                    assert changed.sum() == 2


def check_launch_shape(rung: str, tiles: LinearTiles, **options) -> None:
    """Any tiles give the same up to rounding."""
    given = arrays(1, **options)
    with launched(tiles):
        found = jax.tree.leaves(parity.run(rung, with_gradients, given))
    for value, expected in zip(found, jax.tree.leaves(parity.run("xla", with_gradients, given)), strict=True):
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-5 * max(1.0, parity.scale(expected)))
