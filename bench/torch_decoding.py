"""Cached decoding by the PyTorch oracle, eager, with the weights of a JAX model."""

from collections.abc import Callable

import numpy as np
import torch

from megalodon_jax import MegalodonForCausalLM
from megalodon_jax.convert import convert_jax_to_torch
from reference import oracle_torch


def steps(model: MegalodonForCausalLM, prompt: np.ndarray, token: np.ndarray, count: int) -> Callable[[], np.ndarray]:
    """A program that decodes a token `count` times, from where its last call stopped, first after the prompt, and
    returns the last logits."""
    torch.set_num_threads(1)
    twin = oracle_torch.MegalodonForCausalLM(oracle_torch.OracleConfig.from_any(model.config), dtype=torch.float32)
    twin.load_state_dict(convert_jax_to_torch(model))
    given = torch.tensor(token[:, None], dtype=torch.long)
    with torch.no_grad():
        held = [twin(torch.tensor(prompt, dtype=torch.long), use_cache=True)[1]]

    def one() -> np.ndarray:
        with torch.no_grad():
            logits, held[0] = twin(given, past_key_values=held[0], use_cache=True)
        return logits[:, 0].numpy()

    return lambda: [one() for _ in range(count)][-1]
