"""Training of the PyTorch oracle, with the weights, batches and hyperparameters of one of our runs. Needs torch."""

import math
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megalodon_jax import MegalodonForCausalLM
from megalodon_jax.convert import convert_jax_to_torch
from megalodon_jax.training.batches import Batch
from megalodon_jax.training.config import Optimizer
from megalodon_jax.training.optimizer import is_decayed
from megalodon_jax.training.packing import IGNORED
from reference import oracle_torch


class TorchTraining:
    """The oracle with the weights of a model of ours, and `torch.optim.AdamW` with the same decay groups.

    Args:
        model: whose weights it starts with.
        config: "adamw" alone.
        dtype: of all parameters and of all that is computed, "float32" or "float64".
        perturbed: seed of a move of each weight to one of its two neighbours in `dtype`; None: none is moved.
    """

    def __init__(self, model: MegalodonForCausalLM, config: Optimizer, dtype: str, perturbed: int | None = None):
        if config.name != "adamw":
            raise ValueError(f"optimizer.name must be adamw here, got {config.name}")
        sizes = oracle_torch.OracleConfig.from_any(model.config)
        self.model = oracle_torch.MegalodonForCausalLM(sizes, dtype=getattr(torch, dtype))
        self.model.load_state_dict(convert_jax_to_torch(model))
        if perturbed is not None:
            _perturb(self.model, perturbed)
        self._clip = config.gradient_clip
        groups: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, parameter in self.model.named_parameters():
            like = jax.ShapeDtypeStruct(tuple(parameter.shape), dtype)
            groups[is_decayed(name, like)].append(parameter)
        self._optimizer = torch.optim.AdamW(
            [{"params": groups[True], "weight_decay": config.weight_decay},
             {"params": groups[False], "weight_decay": 0.0}],
            betas=(config.beta1, config.beta2), eps=config.epsilon,
        )  # fmt: skip

    def step(self, batch: Batch, rate: float) -> float:
        """The mean loss of a batch [A, B, T] before the update with it."""
        self._optimizer.zero_grad()
        loss, count = self._loss(batch.inputs, batch.targets)
        loss = loss / count
        loss.backward()
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if self._clip and norm > self._clip:
            for p in parameters:
                assert p.grad is not None
                p.grad.mul_(self._clip / norm)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        return loss.item()

    @torch.no_grad()
    def evaluate(self, windows: Batch, rows: int) -> float:
        """Mean loss over the targets of windows [W, T], so many at a time."""
        sums = [
            self._loss(windows.inputs[i : i + rows], windows.targets[i : i + rows])
            for i in range(0, len(windows.inputs), rows)
        ]
        return math.fsum(loss.item() for loss, _ in sums) / sum(count for _, count in sums)

    def _loss(self, inputs: Any, targets: Any) -> tuple[Tensor, int]:
        inputs, targets = (torch.tensor(np.asarray(a), dtype=torch.long).flatten(0, -2) for a in (inputs, targets))
        logits, _ = self.model(inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        return loss, int((targets != IGNORED).sum())


@torch.no_grad()
def _perturb(model: torch.nn.Module, seed: int) -> None:
    """Each weight up or down by one unit in its last place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        up = torch.rand(parameter.shape, generator=generator) < 0.5
        parameter.copy_(torch.nextafter(parameter, torch.where(up, math.inf, -math.inf).to(parameter.dtype)))
