"""What a run asks of its devices, answered for one, where most of it is nothing to do; for several in `sharded`."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float32, Int

from megalodon_jax.training.batches import Batch

# What an argument of a compiled function is: a `State`, parameters, a `Batch` of rows, or the same on all devices.
Kind = Literal["state", "parameters", "rows", "same"]
Tree = TypeVar("Tree")


class OneDevice:
    """The first device.

    Attributes:
        count: of devices.
    """

    count = 1

    # Where arrays are.

    def rows(self, count: int) -> Int[np.ndarray, " rows"]:
        """Which of `count` rows this process computes."""
        return np.arange(count)

    def put(self, batch: Batch, count: int) -> Batch:
        """Rows of this process, as arrays of all `count` rows on the devices."""
        return jax.device_put(batch)

    def spread(self, parameters: Tree) -> Tree:
        """Parameters in buffers of their own."""
        return jax.tree.map(lambda a: jnp.array(a, copy=True), parameters)

    def initialised(self, init: Callable[[Any], Any], parameters: Any) -> Any:
        """`init(parameters)`, the state of an optimizer."""
        return init(parameters)

    def everywhere(self, tree: Tree) -> Tree:
        """Arrays that all devices have."""
        return tree

    def at_home(self, parameters: Tree) -> Tree:
        """All of the parameters on one device of this process; every process has to ask."""
        return parameters

    # What is compiled.

    def compiled(self, f: Callable[..., Any], *kinds: Kind, donate: int | None = None) -> Any:
        """`f`, whose arguments are of these kinds; the one with the number `donate` is used up.

        Results are the same on all devices, but for the state that `f` returns first if it takes one first.
        """
        return jax.jit(f, donate_argnums=donate)

    # What is called inside of that.

    def own(self, key: jax.Array) -> jax.Array:
        """The key of this device."""
        return key

    def whole(self, parameters: Tree) -> Tree:
        """Parameters from the parts that devices have."""
        return parameters

    def parts(self, gradients: Tree) -> Tree:
        """Of gradients of whole parameters, the part that is this device's to sum up."""
        return gradients

    def total(self, numbers: Tree) -> Tree:
        """Sums over all devices."""
        return numbers

    def total_gradients(self, parts: Tree) -> Tree:
        """Sums, over the devices, of what `parts` gave."""
        return parts

    def norm(self, parts: Any) -> Float32[Array, ""]:
        """The norm of a whole gradient, from its parts."""
        return optax.tree.norm(parts)


ONE = OneDevice()
