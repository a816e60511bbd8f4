"""Suite `stream` on CPU: a long stream in uneven pieces against the float64 model, which knows no pieces.

The model is tiny, so that an oracle that walks token by token is done in minutes; its state is that of a large one.
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bench import environment, report
from megalodon_jax import MegalodonConfig, MegalodonForCausalLM, init_cache
from megalodon_jax.parameters import named_parameters
from reference import oracle_numpy_model

LENGTHS = (1_000_000,)
PIECES = (4096, 1, 1000, 37, 8192, 3)  # again and again
PARTS = 10  # of the stream, each with its error
WINDOW = 48
BASE = {
    "vocab_size": 64, "model_dim": 16, "num_layers": 1, "z_dim": 8, "value_dim": 16, "ffn_hidden_dim": 16,
    "cema_ndim": 4, "chunk_size": 32, "norm_num_groups": 4, "pad_token_id": None,
}  # fmt: skip
MODES = {
    "chunk-local": (MegalodonConfig(**BASE), lambda t: t - t % BASE["chunk_size"]),
    "sliding": (MegalodonConfig(**BASE, max_cache_len=WINDOW), lambda t: max(t - WINDOW + 1, 0)),
}
MOST = 5e-6  # relative RMS error of the logits


def run(lengths: Sequence[int] = LENGTHS, json_file: Path | None = None) -> None:
    """Print the error along streams of these lengths, and write everything to `json_file` if given."""
    jax.config.update("jax_platforms", "cpu")
    record = {
        "versions": environment.versions(),
        "revision": environment.revision(),
        "machine": environment.machine(),
        "streams": [],
    }
    print(", ".join(f"{name} {version}" for name, version in record["versions"].items()))
    for length, mode in itertools.product(lengths, MODES):
        print(f"{mode}: {length} tokens, and the float64 model ...", file=sys.stderr, flush=True)
        errors = along(mode, length)
        record["streams"].append({"mode": mode, "length": length, "errors": errors})
        rows = [[f"{(n + 1) * length // PARTS}", f"{error:.1e}"] for n, error in enumerate(errors)]
        print(f"\n{mode}: {length} tokens in pieces of {', '.join(map(str, PIECES))}, again and again")
        print(report.table(["up to token", "relative RMS error of the logits"], rows))
        print(f"target largest <= {MOST:g}: {'met' if small(errors) else 'not met'} ({np.max(errors):.1e})")
    if json_file is not None:
        report.write_json(record, json_file)


def along(mode: str, length: int) -> list[float]:
    """Relative RMS error of the logits in each part of a stream of random tokens."""
    config, first_key = MODES[mode]
    model = _random(config)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (1, length))
    expected = oracle_numpy_model.logits(named_parameters(model), config, ids, first_key=first_key)
    found = _streamed(model, ids)
    cuts = [n * length // PARTS for n in range(PARTS + 1)]
    return [
        float(np.sqrt(np.mean((found[:, a:b] - expected[:, a:b]) ** 2) / np.mean(expected[:, a:b] ** 2)))
        for a, b in itertools.pairwise(cuts)
    ]


def small(errors: Sequence[float]) -> bool:
    """Are they all within what is allowed? A NaN is not."""
    return all(error <= MOST for error in errors)


def _random(config: MegalodonConfig) -> MegalodonForCausalLM:
    """Every parameter away from the value it starts with."""
    r = np.random.default_rng(0)
    model = MegalodonForCausalLM(config, key=jax.random.key(0))
    return jax.tree.map(lambda a: a + jnp.asarray(0.3 * r.normal(size=a.shape), a.dtype), model)


def _streamed(model: MegalodonForCausalLM, ids: np.ndarray) -> np.ndarray:
    call = eqx.filter_jit(lambda model, ids, cache: model(ids, cache=cache, return_cache=True))
    cache = init_cache(model.config, 1, allocate_kv=True, allocate_norm=True, allocate_ema=True)
    parts, start, pieces = [], 0, itertools.cycle(PIECES)
    while start < ids.shape[1]:
        piece = ids[:, start : start + next(pieces)]
        logits, cache = call(model, jnp.asarray(piece, jnp.int32), cache)
        parts.append(np.asarray(logits, np.float64))
        start += piece.shape[1]
    return np.concatenate(parts, axis=1)
