"""One update: gradients of every micro-batch, their mean over all targets that count, the optimizer.

    L = sum_i L_i / sum_i n_i,     L_i: sum of the losses of micro-batch i,     n_i: its targets that count

so micro-batches give what the batch of all their rows would give, however many targets each of them ignores. A loss,
gradient or change that is not finite changes nothing but the counters. On several devices these are sums over all of
them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float32, Int32, UInt32

from megalodon_jax.training.batches import Batch
from megalodon_jax.training.devices import ONE, OneDevice

Gradients = Callable[[Any, Batch, jax.Array], tuple[Array, Array, Any]]


class State(NamedTuple):
    """All that a run changes: arrays and nothing else.

    Attributes:
        parameters: the model's arrays, None where it has something else.
        optimizer: its state.
        step: steps so far, skipped ones too.
        key: what `jax.random.key_data` gives; dropout of step s has the key `fold_in(key, s)`.
        skipped: steps so far that changed nothing.
        bad: how many of the last steps, without one between them that did.
    """

    parameters: Any
    optimizer: Any
    step: Int32[Array, ""]
    key: UInt32[Array, "2"]
    skipped: Int32[Array, ""]
    bad: Int32[Array, ""]


class Metrics(NamedTuple):
    """Of one step: mean loss in nats and norm of the whole gradient before clipping, both before the update."""

    loss: Float32[Array, ""]
    gradient_norm: Float32[Array, ""]
    learning_rate: Float32[Array, ""]
    skipped: Int32[Array, ""]
    bad: Int32[Array, ""]


def initial_state(
    model: Any, optimizer: optax.GradientTransformation, seed: int, devices: OneDevice = ONE
) -> tuple[State, Any]:
    """The state before the first step, in buffers of its own, and what of the model is not an array."""
    parameters, static = eqx.partition(model, eqx.is_array)
    parameters = devices.spread(parameters)  # the step gives buffers away
    key = jax.random.key_data(jax.random.key(seed))
    zero = lambda: jnp.zeros((), jnp.int32)  # noqa: E731
    others = devices.everywhere((zero(), key, zero(), zero()))
    return State(parameters, devices.initialised(optimizer.init, parameters), *others), static


def make_step(static: Any, optimizer: optax.GradientTransformation, devices: OneDevice = ONE) -> Any:
    """`(state, batch [A, B, T], learning rate) -> (state, metrics)`, compiled; the state that is given is used up.

    On one device it is what `jax.jit` gives.
    """
    gradients = loss_and_gradients(static, devices)

    def step(state: State, batch: Batch, rate) -> tuple[State, Metrics]:
        key = devices.own(jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step))
        found = accumulate(gradients, state.parameters, batch, key, devices)
        return update(optimizer, state, *found, rate, devices)

    return devices.compiled(step, "state", "rows", "same", donate=0)


def loss_and_gradients(static: Any, devices: OneDevice = ONE) -> Gradients:
    """`(parameters, batch [B, T], key) -> (sum of losses, how many targets count, gradient of the sum)`."""

    def total(parameters, batch: Batch, key):
        loss, count = eqx.combine(parameters, static).compute_loss(
            batch.inputs, batch.targets, deterministic=False, key=key, segment_ids=batch.segment_ids,
            reduction="sum", return_valid_count=True, shift=False,
        )  # fmt: skip
        return loss.astype(jnp.float32), count

    def both(parameters, batch: Batch, key):
        (loss, count), gradients = jax.value_and_grad(total, has_aux=True)(devices.whole(parameters), batch, key)
        return loss, count, devices.parts(gradients)

    return both


def accumulate(
    gradients: Gradients, parameters: Any, batch: Batch, key: jax.Array, devices: OneDevice = ONE
) -> tuple[Array, Any]:
    """Mean loss and its gradient over all micro-batches [A, B, T]; sums are float32, one micro-batch is in memory."""

    def add(sums, micro):
        number, rows = micro
        found = gradients(parameters, rows, jax.random.fold_in(key, number))
        return jax.tree.map(lambda total, one: total + one.astype(total.dtype), sums, found), None

    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.float32), parameters)
    start = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32), zeros
    numbers = jnp.arange(batch.inputs.shape[0], dtype=jnp.int32)
    (loss, count, total), _ = lax.scan(add, start, (numbers, batch))
    (loss, count), total = devices.total((loss, count)), devices.total_gradients(total)
    count = jnp.maximum(count, 1).astype(jnp.float32)
    return loss / count, jax.tree.map(lambda g, a: (g / count).astype(a.dtype), total, parameters)


def update(
    optimizer: optax.GradientTransformation, state: State, loss: Array, gradients: Any, rate, devices: OneDevice = ONE
) -> tuple[State, Metrics]:
    """The state after these gradients, or the old one with its counters moved on where they are not finite."""
    norm = devices.norm(gradients)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes ints and floats
        changes, moments = optimizer.update(gradients, state.optimizer, state.parameters)
    changes = jax.tree.map(lambda u: u * (-rate).astype(u.dtype), changes)
    odd = devices.norm(jax.tree.map(lambda u: 0 * u, changes))  # 0, or NaN if a change is not finite on any device
    finite = jnp.isfinite(loss) & jnp.isfinite(norm) & jnp.isfinite(odd)
    keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
    parameters = jax.tree.map(keep, optax.apply_updates(state.parameters, changes), state.parameters)
    moments = jax.tree.map(keep, moments, state.optimizer)
    failed = (~finite).astype(jnp.int32)
    skipped, bad = state.skipped + failed, (state.bad + failed) * failed
    metrics = Metrics(loss, jnp.asarray(norm, jnp.float32), jnp.asarray(rate, jnp.float32), skipped, bad)
    return State(parameters, moments, state.step + 1, state.key, skipped, bad), metrics
