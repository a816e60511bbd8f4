"""A run of the PyTorch oracle with the weights, the batches and the metrics of one of ours. Needs torch."""

from pathlib import Path
from statistics import mean

import jax

from bench.training.torch_side import TorchTraining
from megalodon_jax.training.batches import fixed_windows
from megalodon_jax.training.config import TrainingConfig
from megalodon_jax.training.folder import prepare
from megalodon_jax.training.metrics import Recorder, Show
from megalodon_jax.training.run import Run
from megalodon_jax.training.schedule import learning_rate


def train_by_torch(config: TrainingConfig, show: Show) -> None:
    """What `train` does, without checkpoints: an interrupted run begins anew. Evaluates the validation part alone."""
    run, length = Run(config), config.data.sequence_length
    model = run.model(run.state)
    training = TorchTraining(model, config.optimizer, "float32")
    windows = fixed_windows(run.parts.validation, length, config.evaluation.windows)
    prepare(config, None)
    losses = []
    with Recorder(Path(config.run_dir), 0, False, show) as recorder:
        for step in range(config.steps + 1):
            if losses and (step % config.log.every == 0 or step == config.steps):
                recorder.write(step, {"train_loss": mean(losses)})
                losses = []
            if step % config.evaluation.every == 0 or step == config.steps:
                recorder.write(step, {"validation_loss": training.evaluate(windows, config.batch_size)})
            if step < config.steps:
                rate = learning_rate(config.optimizer, config.steps, step)
                losses.append(training.step(jax.device_get(run.batch(step)), rate))
