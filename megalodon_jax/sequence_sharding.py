"""One long sequence over several devices, each with a stretch of whole chunks: attention then is each device's own.

What devices pass on is what streams carry from call to call, the state at the beginning of a stretch of L tokens:

    EMA     h_i = sum_{j<i} q^(L (i-1-j)) e_j              e_j: state at the end of stretch j if it begins at 0
    norm    count, mean and variance of all stretches before i, merged by Chan's rule

One all_gather of small states for each EMA and norm. An EMA is computed twice, for its end and with its beginning.
"""

import dataclasses
from functools import partial
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Complex64, Float, Float32

from megalodon_jax.layers.complex_ema import ComplexEMA
from megalodon_jax.layers.timestep_norm import TimestepNorm
from megalodon_jax.model import MegalodonForCausalLM, MegalodonModel
from megalodon_jax.types import NormState

Model = TypeVar("Model", MegalodonForCausalLM, MegalodonModel)


def over_sequence(model: Model, axis: str) -> Model:
    """The model for a stretch of the sequence: inside `shard_map`, along the mesh axis of that name.

    Every device calls it with tokens [B, L] of its stretch, and L is a multiple of the chunk size. It takes neither
    cache nor mask nor documents. Losses are sums of those of the stretches (`shift=False`, since the target of a
    stretch's last token is in the next one), gradients the sums of what devices find. With dropout every device needs a
    key of its own: fold `jax.lax.axis_index(axis)` into it.

    Raises:
        TypeError: another model, whose attention does not stay inside chunks.
    """
    if not isinstance(model, MegalodonForCausalLM | MegalodonModel):
        raise TypeError(f"over_sequence takes a MegalodonForCausalLM or MegalodonModel, got {type(model).__name__}.")

    def swapped(node):
        if isinstance(node, TimestepNorm):
            return SequenceNorm(node, axis, model.config.chunk_size)
        return SequenceEMA(node, axis) if isinstance(node, ComplexEMA) else node

    return jax.tree.map(swapped, model, is_leaf=lambda node: isinstance(node, TimestepNorm | ComplexEMA))


class SequenceEMA(ComplexEMA):
    """A `ComplexEMA` that begins with the state in which the devices before leave it."""

    axis: str = eqx.field(static=True)

    def __init__(self, ema: ComplexEMA, axis: str):
        _copy_fields(ema, self)
        self.axis = axis

    def __call__(self, x, h_init=None, return_state=False, mask=None, *, segment_ids=None, coefficients=None):
        """As of `ComplexEMA`, of a stretch.

        Raises:
            ValueError: a state, mask or documents.
        """
        _refuse(h_init, mask, segment_ids, return_state or None)
        coefficients = self._coeffs() if coefficients is None else coefficients
        _, end = super().__call__(x, None, True, coefficients=coefficients)
        assert end is not None
        ends = lax.all_gather(end, self.axis)
        decay = _power(coefficients.q, x.shape[1])
        _, states = lax.scan(lambda h, end: (decay * h + end, h), jnp.zeros_like(end), ends)
        return super().__call__(x, states[lax.axis_index(self.axis)], coefficients=coefficients)


class SequenceNorm(TimestepNorm):
    """A `TimestepNorm` that begins with the statistics of the devices before."""

    axis: str = eqx.field(static=True)
    chunk_size: int = eqx.field(static=True)

    def __init__(self, norm: TimestepNorm, axis: str, chunk_size: int):
        _copy_fields(norm, self)
        self.axis, self.chunk_size = axis, chunk_size

    def __call__(self, x, state=None, mask=None, *, segment_ids=None):
        """As of `TimestepNorm`, of a stretch.

        Raises:
            ValueError: a state, mask or documents, or a stretch that is not whole chunks.
        """
        _refuse(state, mask, segment_ids)
        if x.shape[1] % self.chunk_size:
            raise ValueError(
                f"every device needs whole chunks of {self.chunk_size} tokens, got {x.shape[1]}; "
                "give a sequence that the chunk size times the number of devices divides"
            )
        return super().__call__(x, self._before(x))

    def _before(self, x: Float[Array, "B L D"]) -> NormState:
        """The state that the devices before leave; of the first one, a fresh one."""
        length, index = x.shape[1], lax.axis_index(self.axis)
        means, squares = lax.all_gather(self._statistics(x), self.axis)
        earlier = (jnp.arange(means.shape[0]) < index)[:, None, None]
        mean = jnp.sum(jnp.where(earlier, means, 0.0), axis=0) / jnp.maximum(index, 1).astype(jnp.float32)
        between = length * jnp.square(means - mean)
        squares = jnp.sum(jnp.where(earlier, squares + between, 0.0), axis=0)
        if self.statistics == "token_mean":  # the fresh variance of 1 counts as one observation
            squares = squares + 1.0
        count = index * length
        var = jnp.where(index == 0, 1.0, squares / jnp.maximum(count, 1).astype(jnp.float32))
        return NormState(jnp.full(x.shape[0], count, jnp.int32), mean, var)

    def _statistics(self, x: Float[Array, "B L D"]) -> tuple[Float32[Array, "B G"], Float32[Array, "B G"]]:
        """Mean and sum of squared deviations of this stretch."""
        grouped = x.astype(jnp.float32).reshape(*x.shape[:2], self.num_groups, -1)
        tokens = jnp.mean(grouped, axis=-1)
        mean = jnp.mean(tokens, axis=1)
        squares = jnp.square(tokens - mean[:, None])
        if self.statistics == "all_features":
            squares = squares + jnp.mean(jnp.square(grouped - tokens[..., None]), axis=-1)
        return mean, jnp.sum(squares, axis=1)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _power(q: Complex64[Array, "D N"], exponent: int) -> Complex64[Array, "D N"]:
    """q^exponent, formed in float64: squaring in float32 would lose a digit with every factor of ten."""
    with jax.enable_x64(True):
        square = q.astype(jnp.complex128)
        power = jnp.ones_like(square)
        while exponent:
            power = power * square if exponent % 2 else power
            square, exponent = square * square, exponent // 2
        return power.astype(jnp.complex64)


@_power.defjvp
def _power_jvp(exponent, primals, tangents):
    (q,), (dq,) = primals, tangents
    return _power(q, exponent), jnp.float32(exponent).astype(q.dtype) * _power(q, exponent - 1) * dq


def _copy_fields(of: eqx.Module, to: eqx.Module) -> None:
    for field in dataclasses.fields(of):  # pyright: ignore[reportArgumentType]
        setattr(to, field.name, getattr(of, field.name))


def _refuse(*given) -> None:
    if any(one is not None for one in given):
        raise ValueError("a sequence over several devices takes no cache, mask or documents")
