"""What a run computes with: data, model, state, compiled step and evaluations. Nothing is written here."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from megalodon_jax.training import models
from megalodon_jax.training.batches import Batch, fixed_windows, training_batch
from megalodon_jax.training.config import TrainingConfig
from megalodon_jax.training.evaluation import Evaluator
from megalodon_jax.training.optimizer import make_optimizer
from megalodon_jax.training.pretrained import load_pretrained
from megalodon_jax.training.sharded import devices_of
from megalodon_jax.training.sources import describe, largest_token, read_tokens
from megalodon_jax.training.splits import split
from megalodon_jax.training.step import State, initial_state, make_step


class Run:
    """All of it, from a config.

    Attributes:
        parts: the text.
        state: that before the first step; `step` uses it up.
        step: as `make_step` gives it.

    Raises:
        ValueError: bad data, or a model section that is not allowed.
        OSError: the data cannot be read.
    """

    def __init__(self, config: TrainingConfig):
        self.config, data = config, config.data
        sizes = models.model_config(config)
        self._compute_dtype = jnp.dtype(sizes.compute_dtype).name
        tokens = read_tokens(data.path, data.tokens)
        if (largest := largest_token(tokens)) >= sizes.vocab_size:
            raise ValueError(
                f"the data holds token {largest}, the model has {sizes.vocab_size} tokens; data.tokens says how the "
                "file is read"
            )
        self.parts = split(tokens, data.split, data.sequence_length + 1)
        if config.evaluation.sequential == "test" and len(self.parts.test) < 2:
            raise ValueError(f"evaluation.sequential is test, and data.split {data.split} leaves no test part")
        self._windows = {
            name: fixed_windows(part, data.sequence_length, config.evaluation.windows, data.document_separator)
            for name, part in (("evaluated_train_loss", self.parts.train), ("validation_loss", self.parts.validation))
        }
        pretrained = config.init_from == "gpt2"
        model = load_pretrained(config) if pretrained else models.build(config, jax.random.key(config.seed))
        self._devices = devices_of(config.mesh, eqx.filter(model, eqx.is_array))
        optimizer = make_optimizer(config.optimizer, self._devices.norm)
        self.state, self._static = initial_state(model, optimizer, config.seed, self._devices)
        self.step = make_step(self._static, optimizer, self._devices)
        self._evaluator = Evaluator(self._static, config.batch_size, self._devices)

    def describe(self) -> str:
        """Data and model in two lines."""
        config, sizes = self.config, " + ".join(f"{len(part):,}" for part in self.parts)
        arrays = jax.tree.leaves(self.state.parameters)
        dtypes = ", ".join(sorted({leaf.dtype.name for leaf in arrays}))
        mesh = f", on {self._devices.count} devices" if self._devices.count > 1 else ""
        return (
            f"data: {describe(config.data.path)}; {sizes} tokens to train on, validate and test\n"
            f"model: {config.model}, {sum(leaf.size for leaf in arrays):,} parameters ({dtypes}), computed in "
            f"{self._compute_dtype}; {config.accumulate} x {config.batch_size} x {config.data.sequence_length} tokens "
            f"per step{mesh}"
        )

    def batch(self, step: int) -> Batch:
        """The batch of a step, [A, B, T], on the devices."""
        config, data = self.config, self.config.data
        shape, rows = (config.accumulate, config.batch_size), self._devices.rows(config.batch_size)
        batch = training_batch(
            self.parts.train, config.seed, step, shape, data.sequence_length, data.document_separator, rows,
        )  # fmt: skip
        return self._devices.put(batch, config.batch_size)

    def evaluate(self, state: State) -> dict[str, float]:
        """Mean losses on the fixed windows of the training and of the validation part."""
        return {name: self._evaluator.windows(state.parameters, rows) for name, rows in self._windows.items()}

    def evaluate_sequentially(self, state: State) -> dict[str, Any]:
        """Mean loss of the part that `evaluation.sequential` names, read from its beginning to its end, and how."""
        part = self.config.evaluation.sequential
        length = self.config.data.sequence_length
        loss, how = self._evaluator.sequential(state.parameters, getattr(self.parts, part), length)
        return {f"sequential_{part}_loss": loss, "context": how}

    def model(self, state: State) -> Any:
        """The model with the parameters of a state, on one device and perhaps in the state's buffers: gone when the
        next step has been taken. Every process has to ask.
        """
        return eqx.combine(self._devices.at_home(state.parameters), self._static)
