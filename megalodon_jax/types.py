"""Streaming state of a model as pytree dataclasses; every field is a child, no field is static."""

from dataclasses import dataclass, fields

import jax
from jaxtyping import Array, Bool, Complex64, Float, Float32, Int32


def _pytree(cls):
    """Register a dataclass as a pytree with named children.

    Unflattening bypasses `__init__`: transformations put placeholders where arrays belong.
    """
    names = tuple(f.name for f in fields(cls))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in names)

    def flatten_with_keys(node):
        return tuple((key, getattr(node, name)) for key, name in zip(keys, names, strict=True)), None

    def unflatten(_, children):
        node = object.__new__(cls)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(node, name, child)
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
    return cls


@_pytree
@dataclass
class AttentionCache:
    """Ring buffer of S rotated keys and values; position t of a row sits in slot t mod S.

    `count` is how many tokens each row has seen: the position of its next one.
    """

    k: Float[Array, "B S H K"]
    v: Float[Array, "B S H V"]
    count: Int32[Array, " B"]


@_pytree
@dataclass
class NormState:
    """Statistics of a TimestepNorm so far."""

    count: Int32[Array, " B"]
    mean: Float32[Array, "B G"]
    var: Float32[Array, "B G"]


@_pytree
@dataclass
class EMAState:
    """State of a ComplexEMA after the last step."""

    h: Complex64[Array, "B D N"]


@_pytree
@dataclass
class LayerCache:
    """Everything one block carries; a component that is None starts fresh. `position` mirrors `attn.count`."""

    attn: AttentionCache | None = None
    norm: NormState | None = None
    ema: EMAState | None = None
    position: Int32[Array, " B"] | None = None


@_pytree
@dataclass
class ModelCache:
    """One entry per layer (None starts fresh) and the state of the final norm."""

    layer_caches: tuple[LayerCache | None, ...]
    final_norm: NormState | None = None


@_pytree
@dataclass
class GenerationState:
    """Where generation stopped: the cache after all tokens, logits of the next one, and which rows have ended."""

    cache: ModelCache
    logits: Float32[Array, "B V"]
    finished: Bool[Array, " B"]
