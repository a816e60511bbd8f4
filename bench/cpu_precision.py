"""Suite `precision` on CPU: what low precision costs, in one product and in the loss after some training.

products    error of the block-scaled product and its gradients against float64, beside that of bfloat16
training    the demo's model and text, some steps from the same start: held-out loss at the end, mean of seeds
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import jax
import jax.numpy as jnp
import numpy as np

from bench import environment, report
from megalodon_jax.cli import data, defaults
from megalodon_jax.cli.loop import Options, train
from megalodon_jax.ops import matmul_3d_weight

STEPS = (200,)
SEEDS = 3
KINDS = {
    "float32": {},
    "bfloat16": {"compute_dtype": "bfloat16"},
    "mxfp8": {"compute_dtype": "bfloat16", "gemm_backend": "mxfp8"},
    "nvfp4": {"compute_dtype": "bfloat16", "gemm_backend": "nvfp4"},
}
MOST = {"bfloat16": 0.02, "mxfp8": 0.03, "nvfp4": 0.06}  # above the loss of float32
TOKENS, INPUTS, OUTPUTS = 512, 256, 384


def run(lengths: Sequence[int] = STEPS, json_file: Path | None = None) -> None:
    """Print errors, and losses after these numbers of steps; write everything to `json_file` if given."""
    jax.config.update("jax_platforms", "cpu")
    record = {
        "versions": environment.versions(),
        "revision": environment.revision(),
        "machine": environment.machine(),
        "products": products(),
    }
    print(", ".join(f"{name} {version}" for name, version in record["versions"].items()))
    print(f"\ny = x w^T of normal numbers, x [{TOKENS}, {INPUTS}], w [{OUTPUTS}, {INPUTS}]: relative RMS error")
    rows = [[kind, *(f"{error:.1e}" for error in found.values())] for kind, found in record["products"].items()]
    print(report.table(["", "y", "dx", "dw"], rows, left=1))
    record["training"] = {}
    for steps in lengths:
        losses = record["training"][steps] = {kind: trained(kind, steps, SEEDS) for kind in KINDS}
        print(f"\n{steps} steps of the demo's model on its text, held-out bits per byte, {SEEDS} seeds")
        print(report.table(["", *(f"seed {n}" for n in range(SEEDS)), "mean", "/ float32"], _rows(losses), left=1))
        for kind, most in MOST.items():
            above = mean(losses[kind]) / mean(losses["float32"]) - 1
            verdict = "met" if above <= most else "MISSED"
            print(f"target {kind}: at most {most:.0%} above float32: {verdict} ({above:+.2%})")
    if json_file is not None:
        report.write_json(record, json_file)


def products() -> dict[str, dict[str, float]]:
    """Relative RMS errors of the product and of both gradients, by kind."""
    r = np.random.default_rng(0)
    x, w, dy = (r.normal(size=shape) for shape in ((TOKENS, INPUTS), (OUTPUTS, INPUTS), (TOKENS, OUTPUTS)))
    truth = {"y": x @ w.T, "dx": dy @ w, "dw": dy.T @ x}
    found = {}
    for kind, changes in KINDS.items():
        dtype, backend = changes.get("compute_dtype", "float32"), changes.get("gemm_backend", "default")
        multiply = lambda x, w, dtype=dtype, backend=backend: matmul_3d_weight(x, w, dtype, jnp.float32, backend)  # noqa: E731
        given = (jnp.asarray(a, dtype) for a in (x, w))
        y, pull = jax.vjp(multiply, *given)
        dx, dw = pull(jnp.asarray(dy, y.dtype))
        results = {"y": y, "dx": dx, "dw": dw}
        found[kind] = {name: _error(np.asarray(a, np.float64), truth[name]) for name, a in results.items()}
    return found


def trained(kind: str, steps: int, seeds: int) -> list[float]:
    """Held-out bits per byte after so many steps, for each seed."""
    config = dataclasses.replace(defaults.MODEL, **KINDS[kind])
    corpus = data.load_corpus(None, defaults.SEQUENCE_LENGTH)
    found = []
    for seed in range(seeds):
        print(f"training {kind}, seed {seed}, {steps} steps ...", file=sys.stderr, flush=True)
        options = Options(
            defaults.BATCH_SIZE, defaults.SEQUENCE_LENGTH, defaults.LEARNING_RATE, steps, seed=seed, evaluations=1
        )
        *_, last = train(defaults.initial_model(config, seed), corpus, options)
        assert last.held_out is not None
        found.append(last.held_out)
    return found


def _rows(losses: dict[str, list[float]]) -> list[list[str]]:
    exact = mean(losses["float32"])
    return [
        [kind, *(f"{loss:.3f}" for loss in found), f"{mean(found):.3f}", f"{mean(found) / exact:.4f}"]
        for kind, found in losses.items()
    ]


def _error(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - truth) ** 2) / np.mean(truth**2)))
