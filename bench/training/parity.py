"""Suite `parity`: a run of ours beside one of the PyTorch oracle, from the same weights, on the same batches.

The step is the one that `python -m megalodon_jax train` takes, optimizer included. It runs as it is, in float32, and
widened to float64 (`bench.training.widen`); the oracle runs with `torch.optim.AdamW` in both, and in float32 once more
after every weight has moved to one of its neighbours, which says how far apart two right runs may end.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bench import environment, report
from bench.targets import Verdict
from megalodon_jax.model import MegalodonForCausalLM
from megalodon_jax.training.config import TrainingConfig
from megalodon_jax.training.run import Run
from megalodon_jax.training.schedule import learning_rate
from reference.normalized_rotary import inv_freq

CONFIG = {
    "steps": 100,
    "batch_size": 4,
    "megalodon": {
        "model_dim": 64, "num_layers": 2, "num_heads": 2, "z_dim": 32, "value_dim": 96, "ffn_hidden_dim": 96,
        "cema_ndim": 8, "chunk_size": 16, "norm_num_groups": 8, "swiglu": True, "init_mode": "bert",
    },
    "data": {"sequence_length": 32},
    "optimizer": {"learning_rate": 3e-3, "warmup_steps": 10},
    "evaluation": {"windows": 1},
}  # fmt: skip
OURS, TORCH, MOVED = "ours", "PyTorch", "PyTorch, moved by 1 ulp"
MOST = {"float64": 1e-6, "float32": 1e-4}
TIMES_MOVED = 3.0
SHOWN = 10  # lines of the table

Curves = dict[str, dict[str, list[float]]]  # by dtype and program, the loss of every step in nats


def run(json_file: Path | None = None) -> None:
    """Train, print losses and their largest differences, and write everything to `json_file` if given."""
    jax.config.update("jax_platforms", "cpu")
    record = measure(TrainingConfig.from_dict(CONFIG))
    print(text(record))
    if json_file is not None:
        report.write_json(record, json_file)


def measure(config: TrainingConfig) -> dict:
    """Everything as plain data."""
    found = curves(config)
    return {
        "versions": environment.versions("torch"),
        "revision": environment.revision(),
        "config": config.to_dict(),
        "losses": found,
        "differences": {dtype: differences(programs) for dtype, programs in found.items()},
        "targets": [dataclasses.asdict(one) for one in verdicts(found)],
    }


def curves(config: TrainingConfig) -> Curves:
    """The losses of every step, of all programs."""
    from bench.training.torch_side import TorchTraining

    run = Run(config)
    batches = [jax.device_get(run.batch(step)) for step in range(config.steps)]
    rates = [np.float32(learning_rate(config.optimizer, config.steps, step)) for step in range(config.steps)]

    def trained_by_torch(dtype: str, perturbed: int | None = None) -> list[float]:
        training = TorchTraining(model, config.optimizer, dtype, perturbed)
        return [training.step(batch, float(rate)) for batch, rate in zip(batches, rates, strict=True)]

    model = run.model(run.state)
    found: Curves = {
        "float64": {TORCH: trained_by_torch("float64"), OURS: wide_losses(run, batches, rates)},
        "float32": {TORCH: trained_by_torch("float32"), MOVED: trained_by_torch("float32", 0)},
    }
    state, losses = run.state, []
    for batch, rate in zip(batches, rates, strict=True):  # last, as it uses the weights up
        state, metrics = run.step(state, batch, rate)
        losses.append(float(metrics.loss))
    found["float32"][OURS] = losses
    return found


def wide_losses(run: Run, batches: list, rates: list) -> list[float]:
    """Losses of our step in float64."""
    from bench.training.widen import to_float64, widened

    step = widened(run.step, run.state, batches[0], rates[0], exact=constants(run.model(run.state), run.config))
    losses = []
    with jax.enable_x64(True):
        state = to_float64(run.state)
        for batch, rate in zip(batches, rates, strict=True):
            state, metrics = step(state, batch, rate)
            losses.append(float(metrics.loss))
    return losses


def constants(model: MegalodonForCausalLM, config: TrainingConfig) -> list[float]:
    """Numbers in the equations of model and optimizer that are no float32."""
    sizes, o = model.config, config.optimizer
    root = math.sqrt(sizes.head_dim)
    frequencies = inv_freq(sizes.head_dim, sizes.effective_rope_base)
    of_ema = [2 * math.pi / sizes.cema_ndim, math.sqrt(1 / sizes.cema_ndim)]
    of_norms = [sizes.norm_eps, 1e-6]  # and the least variance of a TimestepNorm
    of_optimizer = [o.beta1, 1 - o.beta1, o.beta2, 1 - o.beta2, o.epsilon, o.weight_decay, o.gradient_clip]
    return [root, 1 / root, *frequencies, *of_ema, *of_norms, *of_optimizer]


def differences(losses: Mapping[str, list[float]]) -> dict[str, float]:
    """The largest one of each program from PyTorch's."""
    return {
        name: float(np.max(np.abs(np.subtract(found, losses[TORCH]))))
        for name, found in losses.items()
        if name != TORCH
    }


def verdicts(found: Curves) -> list[Verdict]:
    """Is ours as near to PyTorch as it has to be?"""
    judged = []
    for dtype, programs in found.items():
        largest = differences(programs)
        most = max(MOST[dtype], TIMES_MOVED * largest.get(MOVED, 0.0))
        judged.append(Verdict(f"{dtype}: |{OURS} - {TORCH}| <= {most:.1e}", largest[OURS], largest[OURS] <= most))
    return judged


def text(record: dict[str, Any]) -> str:
    """Losses of some steps, largest differences of all, targets."""
    losses = {(dtype, name): one for dtype, programs in record["losses"].items() for name, one in programs.items()}
    steps = record["config"]["steps"]
    shown = sorted({0, *range(SHOWN - 1, steps, max(steps // SHOWN, 1)), steps - 1})
    rows = [[str(step), *(f"{one[step]:.9f}" for one in losses.values())] for step in shown]
    header = ["step", *(f"{dtype} {name}" for dtype, name in losses)]
    return "\n\n".join(
        [
            ", ".join(f"{name} {version}" for name, version in record["versions"].items())
            + f"\n{steps} steps of AdamW from the same weights on the same batches: loss in nats before each step",
            report.table(header, rows),
            "Largest difference from PyTorch of any step\n"
            + report.table(
                ["", "", "nats"],
                [
                    [dtype, name, f"{largest:.1e}"]
                    for dtype, programs in record["differences"].items()
                    for name, largest in programs.items()
                ],
                left=2,
            ),
            "\n".join(
                f"target {one['target']}: {'met' if one['met'] else 'MISSED'} ({one['figure']:.1e})"
                for one in record["targets"]
            ),
        ]
    )
