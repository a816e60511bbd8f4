"""Losses without dropout: the mean over windows, and that of a whole text from its beginning to its end."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt

from megalodon_jax.inference.cache import init_cache
from megalodon_jax.loss import token_losses
from megalodon_jax.model import MegalodonForCausalLM
from megalodon_jax.training.batches import Batch, sliding_windows
from megalodon_jax.training.devices import ONE, OneDevice
from megalodon_jax.training.packing import IGNORED


class Evaluator:
    """Mean losses of a model in nats per token; `rows` windows at a time, compiled once for each length."""

    def __init__(self, static: Any, rows: int, devices: OneDevice = ONE):
        self._static, self._rows, self._devices = static, rows, devices
        self._sums = devices.compiled(self._window_sums, "parameters", "rows")
        self._advance = jax.jit(self._piece_sum, donate_argnums=1)

    def windows(self, parameters: Any, windows: Batch) -> float:
        """Mean over the targets that count of windows [W, T]."""
        sums, own = [], self._devices.rows(self._rows)
        for start in range(0, len(windows.inputs), self._rows):
            rows = _filled(jax.tree.map(lambda a, start=start: a[start : start + self._rows], windows), self._rows)
            rows = self._devices.put(jax.tree.map(lambda a: a[own], rows), self._rows)
            sums.append(self._sums(parameters, rows))
        totals, counts = np.asarray(jax.device_get(sums), np.float64).T
        return float(totals.sum() / max(counts.sum(), 1))

    def sequential(self, parameters: Any, tokens: UInt[np.ndarray, " N"], length: int) -> tuple[float, str]:
        """Mean over all tokens of a text but the first, and how it was read: "streaming" or "sliding windows".

        A Megalodon streams: it carries its state through pieces of `length` tokens, so that every token has all that
        came before as context, as far as the model can remember. Others read windows of `length` tokens that overlap by
        half, so that every token has at least half a window before it.

        Raises:
            ValueError: fewer than two tokens.
        """
        if len(tokens) < 2:
            raise ValueError(f"a text of {len(tokens)} tokens predicts nothing; at least 2 are needed")
        if not isinstance(self._static, MegalodonForCausalLM):
            windows = sliding_windows(tokens, length)
            return self.windows(parameters, windows), "sliding windows"
        cache = init_cache(self._static.config, 1, allocate_kv=True, allocate_norm=True, allocate_ema=True)
        parameters, sums = self._devices.at_home(parameters), []  # one stream has nothing to share out
        for start in range(0, len(tokens) - 1, length):
            piece = tokens[start : start + length + 1].astype(np.int32)
            targets = np.pad(piece[1:], (0, length + 1 - len(piece)), constant_values=IGNORED)
            inputs = np.pad(piece[:-1], (0, length + 1 - len(piece)))
            cache, total = self._advance(parameters, cache, inputs[None], targets[None])
            sums.append(total)
        return float(np.sum(np.asarray(jax.device_get(sums), np.float64)) / (len(tokens) - 1)), "streaming"

    def _window_sums(self, parameters, rows: Batch):
        loss, count = eqx.combine(self._devices.whole(parameters), self._static).compute_loss(
            rows.inputs, rows.targets, segment_ids=rows.segment_ids,
            reduction="sum", return_valid_count=True, shift=False,
        )  # fmt: skip
        return self._devices.total(jnp.stack([loss.astype(jnp.float32), count.astype(jnp.float32)]))

    def _piece_sum(self, parameters, cache, inputs, targets):
        logits, cache = eqx.combine(parameters, self._static)(inputs, cache=cache, return_cache=True)
        losses = token_losses(logits, jnp.maximum(targets, 0), jnp.float32)
        return cache, jnp.sum(jnp.where(targets == IGNORED, 0.0, losses))


def bits(nats: float) -> float:
    """Nats as bits."""
    return nats / math.log(2)


def _filled(rows: Batch, count: int) -> Batch:
    """`rows` filled up to `count` rows that predict nothing."""
    missing = ((0, count - len(rows.inputs)), (0, 0))
    inputs = np.pad(rows.inputs, missing)
    targets = np.pad(rows.targets, missing, constant_values=IGNORED)
    return Batch(inputs, targets, None if rows.segment_ids is None else np.pad(rows.segment_ids, missing))
