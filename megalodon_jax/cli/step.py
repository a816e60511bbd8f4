"""One training step and one evaluation, compiled ahead of time for a fixed batch shape."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from megalodon_jax.model import MegalodonForCausalLM

MAX_GRADIENT_NORM = 1.0
BETA2 = 0.98  # runs of a few hundred steps have no use for the longer memory of 0.999


@dataclass(frozen=True)
class Compiled:
    """`step(parameters, state, ids, rate, key) -> parameters, state, loss` gives its first two arguments' buffers away;
    `losses(parameters, ids)` is the loss in nats of every byte but each window's first, [B, L-1].
    """

    step: Callable[..., Any]
    losses: Callable[..., jax.Array]
    parameters: Any
    state: Any
    static: Any
    seconds: float

    def model(self, parameters) -> MegalodonForCausalLM:
        """The model with these parameters."""
        return eqx.combine(parameters, self.static)


def compile_step(model: MegalodonForCausalLM, example: np.ndarray, weight_decay: float) -> Compiled:
    """Compile for batches like `example` [B, L]; AdamW with clipped gradients, no decay on vectors.

    The optimiser sees no learning rate: `step` takes it as an argument, so a schedule may follow the clock.
    """
    # The step gives buffers away; the caller keeps those of `model`.
    parameters, static = eqx.partition(model, eqx.is_array)
    parameters = jax.tree.map(lambda a: jnp.array(a, copy=True), parameters)
    optimizer = optax.chain(
        optax.clip_by_global_norm(MAX_GRADIENT_NORM),
        optax.scale_by_adam(b2=BETA2),
        optax.add_decayed_weights(weight_decay, mask=lambda tree: jax.tree.map(lambda a: a.ndim >= 2, tree)),
    )
    state = optimizer.init(parameters)

    def step(parameters, state, ids, rate, key):
        def loss(parameters):
            return eqx.combine(parameters, static).compute_loss(ids, ids, deterministic=False, key=key)

        value, gradients = jax.value_and_grad(loss)(parameters)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes ints and floats
            updates, state = optimizer.update(gradients, state, parameters)
        updates = jax.tree.map(lambda u: u * (-rate).astype(u.dtype), updates)
        return optax.apply_updates(parameters, updates), state, value

    def losses(parameters, ids):
        return eqx.combine(parameters, static).compute_loss(ids, ids, reduction="none")

    begun = time.perf_counter()
    compiled_step = (
        jax.jit(step, donate_argnums=(0, 1))
        .lower(parameters, state, example, np.float32(0), jax.random.key(0))
        .compile()
    )
    compiled_losses = jax.jit(losses).lower(parameters, example).compile()
    return Compiled(compiled_step, compiled_losses, parameters, state, static, time.perf_counter() - begun)
