"""Devices in a mesh of `data` x `fsdp`: each computes rows of the batch and keeps a part of parameters and moments.

    W: a device's part of a parameter        whole = all_gather(W)        dW = sum over data of psum_scatter(d whole)

Rows are cut over both axes. A parameter is cut along its longest axis that `fsdp` divides, and is on every device where
there is none; the optimizer's moments lie as the parameters do. Whole parameters are there while a micro-batch is
computed; its gradients are summed in float32, over `fsdp` at once and over `data` after the last one. All of it is
inside one `shard_map`: kernels see arrays of one device.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float32, Int

from megalodon_jax.training.batches import Batch
from megalodon_jax.training.config import Mesh
from megalodon_jax.training.devices import ONE, Kind, OneDevice, Tree

DATA, FSDP = "data", "fsdp"
_BOTH = (DATA, FSDP)
_EVERYWHERE = PartitionSpec()
_UNCUT = -1  # the axis of what is not cut


def devices_of(mesh: Mesh, parameters: Any) -> OneDevice:
    """The devices of a run with such parameters: one for a mesh of one in a single process, else all there are.

    Raises:
        ValueError: the mesh has not as many devices as there are.
    """
    if mesh.data * mesh.fsdp == jax.process_count() == 1:
        return ONE
    return OverMesh(mesh, parameters)


def cut_axis(shape: tuple[int, ...], parts: int) -> int:
    """The longest axis that `parts` divides, the first of several; -1 if there is none, or nothing to cut."""
    axes = [axis for axis, size in enumerate(shape) if size and size % parts == 0 and parts > 1]
    return max(axes, key=lambda axis: shape[axis], default=_UNCUT)


class OverMesh(OneDevice):
    """All devices of all processes, for parameters of these shapes.

    Raises:
        ValueError: the mesh has not as many devices as there are.
    """

    def __init__(self, mesh: Mesh, parameters: Any):
        self.count, there = mesh.data * mesh.fsdp, jax.device_count()
        if self.count != there:
            raise ValueError(
                f"mesh {{data: {mesh.data}, fsdp: {mesh.fsdp}}} is of {self.count} devices, and there are {there}; "
                f"the product of its numbers must be {there}, as in mesh={{data: {there}}} "
                "(CUDA_VISIBLE_DEVICES hides devices that are not to take part)"
            )
        self._mesh = jax.make_mesh((mesh.data, mesh.fsdp), _BOTH, axis_types=(AxisType.Auto, AxisType.Auto))
        self._fsdp = mesh.fsdp
        self._axes = jax.tree.map(lambda a: cut_axis(a.shape, mesh.fsdp), parameters)
        self._gather = jax.jit(lambda tree: tree, out_shardings=self._sharding(_EVERYWHERE))

    def rows(self, count: int) -> Int[np.ndarray, " rows"]:
        there = self._sharding(PartitionSpec(_BOTH)).addressable_devices_indices_map((count,))
        return np.unique(np.concatenate([np.arange(count)[index] for index in there.values() if index is not None]))

    def put(self, batch: Batch, count: int) -> Batch:
        def one(a: np.ndarray) -> jax.Array:
            sharding, shape = self._sharding(_of_rows(a)), (*a.shape[:-2], count, a.shape[-1])
            return jax.make_array_from_process_local_data(sharding, a, shape)

        return jax.tree.map(one, batch)

    def spread(self, parameters: Tree) -> Tree:
        return jax.tree.map(lambda a: self._placed(a, self._spec(a)), parameters)

    def initialised(self, init: Callable[[Any], Any], parameters: Any) -> Any:
        shardings = jax.tree.map(lambda a: self._sharding(self._spec(a)), jax.eval_shape(init, parameters))
        return jax.jit(init, out_shardings=shardings)(parameters)

    def everywhere(self, tree: Tree) -> Tree:
        return jax.tree.map(lambda a: self._placed(a, _EVERYWHERE), tree)

    def at_home(self, parameters: Tree) -> Tree:
        return jax.tree.map(lambda a: a.addressable_data(0), self._gather(parameters))

    def compiled(self, f: Callable[..., Any], *kinds: Kind, donate: int | None = None) -> Any:
        def over_mesh(*arguments):
            given = tuple(map(self._specs, kinds, arguments))
            results = (given[0], _EVERYWHERE) if kinds[0] == "state" else _EVERYWHERE
            return jax.shard_map(f, mesh=self._mesh, in_specs=given, out_specs=results, check_vma=False)(*arguments)

        run = jax.jit(over_mesh, donate_argnums=donate)
        if self._mesh.devices.flat[0].platform != "cpu":
            return run
        # CPU devices share a pool of threads, in which two runs at a time can wait for each other for ever.
        return lambda *arguments: jax.block_until_ready(run(*arguments))

    def own(self, key: jax.Array) -> jax.Array:
        return jax.random.fold_in(key, lax.axis_index(_BOTH))

    def whole(self, parameters: Tree) -> Tree:
        gather = lambda a, axis: lax.all_gather(a, FSDP, axis=axis, tiled=True)  # noqa: E731
        return jax.tree.map(lambda a, axis: a if axis == _UNCUT else gather(a, axis), parameters, self._axes)

    def parts(self, gradients: Tree) -> Tree:
        def one(g: Array, axis: int) -> Array:
            g = g.astype(jnp.float32)
            return g if axis == _UNCUT else lax.psum_scatter(g, FSDP, scatter_dimension=axis, tiled=True)

        return jax.tree.map(one, gradients, self._axes)

    def total(self, numbers: Tree) -> Tree:
        return lax.psum(numbers, _BOTH)

    def total_gradients(self, parts: Tree) -> Tree:
        return jax.tree.map(lambda g, axis: lax.psum(g, _BOTH if axis == _UNCUT else DATA), parts, self._axes)

    def norm(self, parts: Any) -> Float32[Array, ""]:
        both = list(zip(jax.tree.leaves(parts), jax.tree.leaves(self._axes), strict=True))

        def squares(cut: bool) -> Array:
            leaves = [g.astype(jnp.float32) for g, axis in both if (axis != _UNCUT) == cut]
            return sum((jnp.sum(g * g) for g in leaves), jnp.zeros((), jnp.float32))

        return jnp.sqrt(squares(cut=False) + lax.psum(squares(cut=True), FSDP))

    def _spec(self, a: Any) -> PartitionSpec:
        axis = cut_axis(a.shape, self._fsdp)
        return _EVERYWHERE if axis == _UNCUT else PartitionSpec(*[None] * axis, FSDP)

    def _specs(self, kind: Kind, argument: Any) -> Any:
        if kind == "same":
            return _EVERYWHERE
        if kind == "rows":
            return jax.tree.map(_of_rows, argument)
        cut = lambda tree: jax.tree.map(self._spec, tree)  # noqa: E731
        if kind == "parameters":
            return cut(argument)
        same = jax.tree.map(lambda _: _EVERYWHERE, argument)
        return same._replace(parameters=cut(argument.parameters), optimizer=cut(argument.optimizer))

    def _sharding(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self._mesh, spec)

    def _placed(self, a: Any, spec: PartitionSpec) -> jax.Array:
        """An array that every process has, over the devices; each has a buffer of its own, for the step to use up."""
        there = np.asarray(a)
        return jax.make_array_from_callback(there.shape, self._sharding(spec), lambda index: np.array(there[index]))


def _of_rows(a: Any) -> PartitionSpec:
    """[..., rows, T]"""
    return PartitionSpec(*[None] * (a.ndim - 2), _BOTH)
