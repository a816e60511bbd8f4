"""Learning rates.

rate(s) = peak * min((s + 1) / warmup, 1)                        s < warmup, and always for "constant"
rate(s) = min + (peak - min) * (1 + cos(pi f)) / 2               f = (s - warmup) / (end - warmup), at most 1
"""

import math

from megalodon_jax.training.config import Optimizer


def learning_rate(config: Optimizer, steps: int, step: int) -> float:
    """Rate of the update of a step, counted from 0, in a run of so many steps."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "constant":
        return peak
    fraction = (step - warmup) / max((config.decay_steps or steps) - warmup, 1)
    return cosine(min(fraction, 1.0), peak, config.min_learning_rate)


def cosine(fraction: float, peak: float, least: float) -> float:
    """From `peak` at 0 to `least` at 1."""
    return least + (peak - least) * (1 + math.cos(math.pi * fraction)) / 2
