"""What benches of decoding share: random tokens, programs of several steps, and a check that logits agree."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bench.measure import CpuTime, interleaved
from megalodon_jax import MegalodonForCausalLM

TOKENS = 16  # in a measured call
MOST_ERROR = 1e-4


def random_ids(model: MegalodonForCausalLM, batch: int, length: int, seed: int = 0) -> jax.Array:
    """Token ids [batch, length]."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, model.config.vocab_size, (batch, length)), jnp.int32)


def first_token(model: MegalodonForCausalLM) -> jax.Array:
    """The token [1] that every program here decodes again and again."""
    return random_ids(model, 1, 1)[:, 0]


def steps(step: Callable, model: MegalodonForCausalLM, state) -> Callable[[], jax.Array]:
    """A program of TOKENS steps (model, token, state) -> (logits, state), from where its last call stopped."""
    held, token = [state], first_token(model)

    def one() -> jax.Array:
        logits, held[0] = step(model, token, held[0])
        return logits.block_until_ready()

    return lambda: [one() for _ in range(TOKENS)][-1]


def torch_steps(model: MegalodonForCausalLM, prompt: jax.Array) -> dict[str, Callable[[], np.ndarray]]:
    """The same by the PyTorch oracle after a prompt [1, L]; nothing where torch is not installed."""
    if find_spec("torch") is None:
        return {}
    from bench import torch_decoding

    return {"PyTorch, eager": torch_decoding.steps(model, np.asarray(prompt), np.asarray(first_token(model)), TOKENS)}


def cache_after(model: MegalodonForCausalLM, ids: jax.Array, cache):
    """A cache after more tokens, which come in pieces of a few chunks."""
    feed = eqx.filter_jit(lambda model, ids, cache: model(ids, cache=cache, return_cache=True)[1])
    piece = 4 * model.config.chunk_size
    for start in range(0, ids.shape[1], piece):
        cache = feed(model, ids[:, start : start + piece], cache)
    return cache


def interleaved_tokens(programs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[CpuTime]]:
    """Samples of one token, of programs that decode TOKENS."""
    one = lambda s: CpuTime(*(part / TOKENS for part in (s.user_ms, s.system_ms, s.total_ms)))  # noqa: E731
    return {name: [one(sample) for sample in found] for name, found in interleaved(programs, rounds).items()}


def agree(name: str, found, expected) -> None:
    """Raise if the relative RMS error of an array is not below MOST_ERROR."""
    found, expected = np.asarray(found), np.asarray(expected)
    error = np.sqrt(np.mean(np.abs(found - expected) ** 2) / np.mean(np.abs(expected) ** 2))
    if not error < MOST_ERROR:
        raise AssertionError(f"{name} differs: relative RMS {error:.1e}; no figures")
