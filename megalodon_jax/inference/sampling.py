"""A token from logits: greedy, or drawn from what temperature, top_k, top_p and min_p leave."""

from dataclasses import asdict, dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

Number = TypeVar("Number", int, float)

_REAL = ("temperature", "top_p", "min_p")


def number(name: str, value, kind: type[Number]) -> Number | None:
    """An option as a Python number of that kind, or None.

    Raises:
        TypeError: something else; an array too, for options are part of the compiled program.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if value is None:
        return None
    if isinstance(value, kind | int) and not isinstance(value, bool):
        return kind(value)
    wanted = "a Python number" if kind is float else "a Python integer"
    found = "an array: it is part of the compiled program" if isinstance(value, jax.Array) else repr(value)
    raise TypeError(f"{name} must be {wanted}, not {found}")


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: divides the logits; 0 means greedy.
        top_k: keep exactly the k most likely tokens (of equals the lower index first); None or 0 keeps all.
        top_p: of those, keep the most likely ones up to and including the one that crosses this mass.
        min_p: of those, keep the ones at least this fraction as likely as the most likely one.

    Raises:
        ValueError: temperature or top_k negative, top_p outside (0, 1], min_p outside [0, 1].
        TypeError: not a number, or a JAX array: options are part of the compiled program.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self):
        for name, value in asdict(self).items():
            object.__setattr__(self, name, number(name, value, float if name in _REAL else int))
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be >= 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 0:
            raise ValueError(f"top_k must be >= 0, got {self.top_k}")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.min_p is not None and not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}")

    def draw(self, logits: Float[Array, "B V"], key) -> tuple[Int32[Array, " B"], jax.Array | None]:
        """A token for each row, and the key for the next draw; at temperature 0 the key is not used."""
        if self.temperature == 0:
            return greedy_token(logits), key
        key, sub = jax.random.split(_checked(key))
        return self._sample(logits, sub), key

    def _sample(self, logits, key):
        kept = min(self.top_k or logits.shape[-1], logits.shape[-1])
        values, tokens = jax.lax.top_k(logits.astype(jnp.float32) / self.temperature, kept)
        if self.top_p is not None and self.top_p < 1.0:
            mass = jax.nn.softmax(values, axis=-1)
            before = jnp.cumsum(mass, axis=-1) - mass
            values = jnp.where(before > self.top_p, -jnp.inf, values)
        if self.min_p:
            values = jnp.where(values < values[:, :1] + jnp.log(jnp.float32(self.min_p)), -jnp.inf, values)
        choice = jax.random.categorical(key, values, axis=-1)
        return jnp.take_along_axis(tokens, choice[:, None], axis=-1)[:, 0].astype(jnp.int32)


def greedy_token(logits: Float[Array, "B V"]) -> Int32[Array, " B"]:
    """Index of the largest logit; the first of equals."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def sample_token(
    logits: Float[Array, "B V"],
    key,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Int32[Array, " B"]:
    """Draw one token per row from unnormalised logits; options and errors as in `Sampling`, in that order.

    `key` is used up, but for temperature 0.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p)
    return greedy_token(logits) if temperature == 0 else sampling._sample(logits, _checked(key))


def _checked(key):
    if key is None:
        raise ValueError("key is required when temperature > 0.")
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"key must be a PRNG key, such as jax.random.key(0), got {key!r}")
    return key
