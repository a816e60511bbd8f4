"""Logits of a converted checkpoint: what JAX makes of the weights before against what torch makes of those after."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from megalodon_jax.architectures import abstract_model
from megalodon_jax.cli.errors import CommandError
from megalodon_jax.config import MegalodonConfig
from megalodon_jax.convert.original import CONSOLIDATED
from megalodon_jax.convert.original_export import original_tensors
from megalodon_jax.convert.state_dict import HEAD, with_head
from megalodon_jax.convert.tensors import as_torch
from megalodon_jax.files import Pending

BOUND = 1e-4  # a wrong tensor or layout gives about 1; float32 arithmetic 1e-6 in few layers, 1e-5 in many
_SHORT, _LONG = 48, 1024  # tokens: enough to show a mistake in the weights; what a CPU can do of a large model


def length(config: MegalodonConfig) -> int:
    """How many tokens are compared: into the second chunk, unless chunks are long."""
    beyond = config.chunk_size + _SHORT
    return beyond if beyond <= _LONG else _SHORT


def require_torch() -> None:
    """Import torch.

    Raises:
        CommandError: it is not installed.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise CommandError('torch is not installed; pip install "megalodon-pallas[torch]"') from error


def logit_error(parameters: Mapping[str, Pending], config: MegalodonConfig, out: Path) -> float:
    """Relative RMS difference of the logits of random ids: float32 here, float64 in the oracle with the files of `out`.

    The weights are those of config.param_dtype on both sides; nothing else is rounded to it.
    """
    import torch

    exact = dataclasses.replace(config, param_dtype="float32", compute_dtype="float32", gemm_backend="default")
    leaves = [jnp.asarray(one.make(), jnp.float32) for one in parameters.values()]
    model = jax.tree.unflatten(jax.tree.structure(abstract_model(exact)[0]), leaves)
    ids = np.random.default_rng(0).integers(min(1, config.vocab_size - 1), config.vocab_size, (1, length(config)))
    logits, _ = model(jnp.asarray(ids, jnp.int32))
    with torch.no_grad():
        truth = _oracle(exact, out)(torch.tensor(ids))
    truth = (truth if config.variant == "original" else truth[0]).numpy()
    return float(np.linalg.norm(np.asarray(logits, np.float64) - truth) / np.linalg.norm(truth))


def _oracle(config: MegalodonConfig, out: Path):
    """The oracle with every weight of the files, strictly."""
    import torch

    from reference import oracle_torch, oracle_torch_original

    if (out / CONSOLIDATED).exists():
        state = torch.load(out / CONSOLIDATED, weights_only=True)
    else:
        arrays = {name: a for file in sorted(out.glob("*.safetensors")) for name, a in load_file(file).items()}
        given = {name: Pending(a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()}
        given = given if HEAD in given else with_head(given, config)
        tensors = given if config.variant == "hf" else original_tensors(given, config)
        state = {name: as_torch(tensor.make()) for name, tensor in tensors.items()}
    if config.variant == "hf":
        twin = oracle_torch.MegalodonForCausalLM(oracle_torch.OracleConfig.from_any(config), dtype=torch.float64)
        if not config.tied:  # which the oracle's is wherever the widths agree
            twin.lm_head = torch.nn.Linear(*reversed(twin.lm_head.weight.shape), bias=False, dtype=torch.float64)
    else:
        twin = oracle_torch_original.OriginalLM(config)
        state["rope.freqs"] = twin.state_dict()["rope.freqs"]  # in float64; the files have it in float32
    twin.load_state_dict(state, strict=True)
    return twin
