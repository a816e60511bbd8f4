"""What is static about one call of linear_cross_entropy, and what its kernels read of tokens and logits."""

from dataclasses import dataclass
from types import SimpleNamespace

import jax

from pallas_kernels._backends.triton import load
from pallas_kernels.fused_linear.problem import Block, load_tile
from pallas_kernels.linear_cross_entropy.math import Softmax, slope


@dataclass(frozen=True)
class Problem:
    """Sizes of a call; `width` is how many words a block of the vocabulary has, with one maximum for each token."""

    tokens: int
    features: int
    vocabulary: int
    width: int


def load_part(ref, block: Block) -> jax.Array:
    """Part of a vector, 0 where it has no entry."""
    return load(ref, block.indices, block.exist)


def counting(refs: SimpleNamespace, tokens: Block) -> Block:
    """The tokens as far as their factors are not 0: nothing else is read of `hidden`."""
    return Block(tokens.indices, load_part(refs.factors, tokens) != 0)  # 0 where there is no token


def load_tokens(refs: SimpleNamespace, tokens: Block) -> Softmax:
    """What gradients need of these tokens; 0 where there is none."""
    return Softmax(*(load_part(getattr(refs, name), tokens) for name in Softmax._fields))


def load_slope(
    refs: SimpleNamespace, problem: Problem, tokens: Block, softmax: Softmax, number, size: int
) -> jax.Array:
    """dz of these tokens and of words `number` * `size` and following, in the dtype of the products."""
    words = Block.of(number, size, problem.vocabulary)
    if problem.width % size == 0:
        tops = load(refs.tops, (number * size // problem.width, tokens.indices), tokens.exist)
    else:  # words of several blocks
        tops = load_tile(refs.tops, Block(words.indices // problem.width, words.exist), tokens).T
    dz = slope(load_tile(refs.e, tokens, words), tops, words.indices, softmax)
    return dz.astype(refs.e.dtype)
