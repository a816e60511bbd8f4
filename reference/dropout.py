"""Inverted dropout, and dropout of attention.

post_softmax   weights w -> keep ? w / (1 - rate) : 0
dropkey        pairs are taken out before the softmax, which is over the others; nothing is rescaled
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

DropoutMode = Literal["post_softmax", "dropkey"]
DROPOUT_MODES = ("post_softmax", "dropkey")


def dropout(x: jax.Array, rate: float, key) -> jax.Array:
    """Zero each element with probability `rate` and scale the others by 1 / (1 - rate); rate 1 gives zeros."""
    if rate == 1.0:
        return jnp.zeros_like(x)
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


class AttentionDropout(NamedTuple):
    """Dropout of one block of attention."""

    rate: float
    key: jax.Array
    mode: DropoutMode = "post_softmax"

    def of_block(self, number) -> "AttentionDropout":
        """The same for a block of its own."""
        return self._replace(key=jax.random.fold_in(self.key, number))

    def allowed(self, allowed: Bool[Array, "*#s"], shape: tuple[int, ...]) -> Bool[Array, "..."]:
        """Pairs of query and key, of scores of `shape`, that are left."""
        return allowed & jax.random.bernoulli(self.key, 1.0 - self.rate, shape) if self.mode == "dropkey" else allowed

    def weights(self, weights: Float[Array, "*s"]) -> Float[Array, "*s"]:
        """What is left of the softmax weights."""
        return dropout(weights, self.rate, self.key) if self.mode == "post_softmax" else weights
