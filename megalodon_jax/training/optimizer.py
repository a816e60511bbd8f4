"""Updates from gradients, without the learning rate, which the step multiplies in.

adamw     clip -> Adam -> + decay * matrix            decay is no part of the moments; matrices alone
adam_l2   clip -> + decay * parameter -> Adam         L2 regularisation of every parameter
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import lax

from megalodon_jax.parameters import map_parameters
from megalodon_jax.training.config import Optimizer


def make_optimizer(
    config: Optimizer, norm: Callable[[Any], jax.Array] = optax.tree.norm
) -> optax.GradientTransformation:
    """The transformation of gradients of a model's arrays into its updates at rate 1, before the minus sign.

    Args:
        config: which one.
        norm: of the whole gradient, where a device has parts of it.
    """
    clip = _clipped(config.gradient_clip, norm) if config.gradient_clip else optax.identity()
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
    if not config.weight_decay:
        return optax.chain(clip, adam)
    if config.name == "adam_l2":
        return optax.chain(clip, optax.add_decayed_weights(config.weight_decay), adam)
    mask = lambda parameters: map_parameters(is_decayed, parameters)  # noqa: E731
    return optax.chain(clip, adam, optax.add_decayed_weights(config.weight_decay, mask))


def _clipped(most: float, norm: Callable[[Any], jax.Array]) -> optax.GradientTransformation:
    """Gradients scaled down to a norm of `most` where it is larger."""

    def scaled(gradients, _):
        size = norm(gradients)
        fits = size < most
        return jax.tree.map(lambda g: lax.select(fits, g, g / size.astype(g.dtype) * most), gradients)

    return optax.stateless(scaled)


def is_decayed(name: str, leaf: jax.Array | jax.ShapeDtypeStruct) -> bool:
    """Is this a matrix that inputs are multiplied with, or an embedding?

    Biases, parameters of norms and of the EMA, and the affine maps of queries and keys say how much of something there
    is; to pull them to 0 is to say that there should be none.
    """
    return leaf.ndim == 2 and name.rsplit(".", 1)[-1] == "weight"
