"""A whole training step of a model, as a function of abstract arrays: compiled and counted, never run.

The model of 8 layers has dimension 512, bfloat16 compute and otherwise the defaults of `MegalodonConfig`. A step is
loss, gradients and AdamW with clipped gradients, the old parameters and moments given away.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from megalodon_jax import MegalodonConfig, MegalodonForCausalLM

CONFIG = MegalodonConfig(num_layers=8, model_dim=512, compute_dtype=jnp.bfloat16)
BATCH, LENGTH = 8, 2048

LEARNING_RATE, WEIGHT_DECAY, MAX_GRADIENT_NORM = 1e-3, 0.1, 1.0


def training_step(config: MegalodonConfig, batch: int, length: int) -> tuple[Callable, tuple[Any, ...]]:
    """A jitted step and its abstract arguments: parameters, optimizer state, ids [batch, length]."""
    abstract = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)  # noqa: E731
    parameters, static = eqx.partition(
        eqx.filter_eval_shape(MegalodonForCausalLM, config, key=jax.random.key(0)), abstract
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(MAX_GRADIENT_NORM), optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    )

    def step(parameters, state, ids):
        loss = lambda parameters: eqx.combine(parameters, static).compute_loss(ids, ids)  # noqa: E731
        value, gradients = jax.value_and_grad(loss)(parameters)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes ints and floats
            updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    arguments = (
        parameters,
        jax.eval_shape(optimizer.init, parameters),
        jax.ShapeDtypeStruct((batch, length), jnp.int32),
    )
    return jax.jit(step, donate_argnums=(0, 1)), arguments
