"""The programs of a model as functions of abstract arrays: compiled and counted, never run.

forward     logits of ids
training    loss and gradients
whole step  training and AdamW with clipped gradients, the old parameters and moments given away
prefill     logits of ids and the state after them
decode      logits of one more token and the state, given away; weights are cast before, as in a loop of many steps
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from megalodon_jax import MegalodonConfig, MegalodonForCausalLM, init_cache
from megalodon_jax.precision import cast_weights
from megalodon_jax.presets import original_config

LEARNING_RATE, WEIGHT_DECAY, MAX_GRADIENT_NORM = 1e-3, 0.1, 1.0
PROGRAMS = ("forward", "training", "whole step", "prefill", "decode")
Compilable = tuple[Callable[..., Any], tuple[Any, ...]]


@dataclass(frozen=True)
class Shape:
    """A model, and the batch of tokens it is given."""

    config: MegalodonConfig
    batch: int
    length: int


MODEL_S = Shape(
    MegalodonConfig(num_layers=8, model_dim=512, chunk_size=256, compute_dtype=jnp.bfloat16), batch=8, length=2048
)


LARGE = {"1.3B": "mega1_3b", "7B": "paper_7b"}  # names in the release


def large(model: str, layers: int) -> Shape:
    """A few layers of a model of `LARGE`, with a small vocabulary."""
    config = original_config(LARGE[model], 256, variant="hf", num_layers=layers, compute_dtype=jnp.bfloat16)
    return Shape(config, batch=2, length=4096)


def program(name: str, shape: Shape) -> Compilable:
    """A jitted program of `PROGRAMS` and its abstract arguments, of which the parameters are the first."""
    model = eqx.filter_eval_shape(MegalodonForCausalLM, shape.config, key=jax.random.key(0))
    ids = jax.ShapeDtypeStruct((shape.batch, shape.length), jnp.int32)
    return _PROGRAMS[name](model, ids)


def _forward(model: MegalodonForCausalLM, ids, return_cache: bool = False) -> Compilable:
    parameters, static = _partition(model)
    run = lambda parameters, ids: eqx.combine(parameters, static)(ids, return_cache=return_cache)  # noqa: E731
    return jax.jit(run), (parameters, ids)


def _prefill(model: MegalodonForCausalLM, ids) -> Compilable:
    return _forward(model, ids, return_cache=True)


def _decode(model: MegalodonForCausalLM, ids) -> Compilable:
    parameters, static = _partition(eqx.filter_eval_shape(cast_weights, model))
    allocate = {"allocate_kv": True, "allocate_norm": True, "allocate_ema": True}
    cache = jax.eval_shape(lambda: init_cache(model.config, ids.shape[0], **allocate))
    token = jax.ShapeDtypeStruct((ids.shape[0], 1), ids.dtype)
    run = lambda parameters, ids, cache: eqx.combine(parameters, static)(ids, cache=cache, return_cache=True)  # noqa: E731
    return jax.jit(run, donate_argnums=2), (parameters, token, cache)


def _training(model: MegalodonForCausalLM, ids) -> Compilable:
    parameters, static = _partition(model)
    return jax.jit(_value_and_gradients(static)), (parameters, ids)


def _whole_step(model: MegalodonForCausalLM, ids) -> Compilable:
    parameters, static = _partition(model)
    value_and_gradients = _value_and_gradients(static)
    optimizer = optax.chain(
        optax.clip_by_global_norm(MAX_GRADIENT_NORM), optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    )

    def step(parameters, ids, state):
        value, gradients = value_and_gradients(parameters, ids)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes ints and floats
            updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    state = jax.eval_shape(optimizer.init, parameters)
    return jax.jit(step, donate_argnums=(0, 2)), (parameters, ids, state)


def _value_and_gradients(static: MegalodonForCausalLM) -> Callable[..., Any]:
    loss = lambda parameters, ids: eqx.combine(parameters, static).compute_loss(ids, ids)  # noqa: E731
    return jax.value_and_grad(loss)


def _partition(model: MegalodonForCausalLM) -> tuple[Any, Any]:
    return eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))


_PROGRAMS: dict[str, Callable[..., Compilable]] = dict(
    zip(PROGRAMS, (_forward, _training, _whole_step, _prefill, _decode), strict=True)
)
