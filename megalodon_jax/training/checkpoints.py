"""Training states on disk: one folder per step, written beside, then renamed, so one that is there is whole.

    RUN/checkpoints/500/    arrays by name ("parameters.model.embed.weight"), and facts: the config, the best so far

Orbax writes and prunes them. It is given our own folders alone, and told which arrays to expect.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from megalodon_jax.training.evaluation import bits
from megalodon_jax.training.step import State

_LOSS = "validation_loss"


class Best(NamedTuple):
    """The lowest validation loss so far, its step, and how many evaluations there have been since."""

    loss: float
    step: int
    since: int

    def after(self, loss: float, step: int) -> "Best":
        """The best after one more evaluation."""
        return Best(loss, step, 0) if loss < self.loss else self._replace(since=self.since + 1)

    def describe(self, unit: str) -> str:
        """In bits per token, which is called `unit`, and where it was."""
        return "not known" if self.step < 0 else f"{bits(self.loss):.3f} bits/{unit} at step {self.step}"


NONE_YET = Best(float("inf"), -1, 0)


class Checkpoints:
    """The checkpoints of a run, a context manager that waits for the last one to be written.

    Args:
        folder: theirs.
        keep: how many of the latest are kept, besides the best. None: the folder is only read.
    """

    def __init__(self, folder: Path, keep: int | None):
        latest = preservation_policy.LatestN(keep)
        best = preservation_policy.BestN(
            get_metric_fn=lambda metrics: metrics[_LOSS], reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy([latest, best]),
            read_only=keep is None, save_interval_steps=0 if keep is None else 1,
            create=keep is not None, cleanup_tmp_directories=keep is not None,
        )  # fmt: skip
        handlers = {"state": ocp.StandardCheckpointHandler(), "facts": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options, item_handlers=handlers)

    def save(self, state: State, config: dict[str, Any], best: Best) -> None:
        """Write the state of its step in the background; it is the best one if `best` is of this step."""
        facts = {"config": config, "best": None if best == NONE_YET else best._asdict()}
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(_named(state)), facts=ocp.args.JsonSave(facts))
        step = int(state.step)
        metrics = {_LOSS: best.loss} if best.step == step else None
        self._manager.save(step, args=arguments, metrics=metrics, force=True)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are whole, ascending."""
        return sorted(self._manager.all_steps())

    def facts(self, step: int) -> tuple[dict[str, Any], Best]:
        """Config and best of a checkpoint.

        Raises:
            ValueError: it is damaged.
        """
        facts = self._read(step, facts=ocp.args.JsonRestore())
        return facts["config"], NONE_YET if facts["best"] is None else Best(**facts["best"])

    def restore(self, step: int, like: State) -> State:
        """The state of a checkpoint, bit for bit, where the arrays of `like` are, which says what is expected.

        Raises:
            ValueError: other arrays, shapes or dtypes are there, or it is damaged.
        """
        with self._readable(step):
            found = self._manager.item_metadata(step)["state"]
        there = {name: (tuple(a.shape), jnp.dtype(a.dtype).name) for name, a in found.items()}
        wanted = {name: (a.shape, a.dtype.name) for name, a in _named(like).items()}
        if wrong := sorted(name for name in there.keys() | wanted.keys() if there.get(name) != wanted.get(name)):
            name = wrong[0]
            raise ValueError(
                f"the checkpoint of step {step} does not fit: {name} is {there.get(name, 'not there')}, expected "
                f"{wanted.get(name, 'no such array')}{f', and {len(wrong) - 1} more' if wrong[1:] else ''}"
            )
        expected = {
            name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for name, a in _named(like).items()
        }
        found = self._read(step, state=ocp.args.StandardRestore(expected))
        return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in expected])

    def _read(self, step: int, **item: Any) -> Any:
        (name,) = item
        with self._readable(step):
            return self._manager.restore(step, args=ocp.args.Composite(**item))[name]

    @contextmanager
    def _readable(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise what they like
            raise ValueError(
                f"the checkpoint of step {step} in {self._manager.directory} cannot be read "
                f"({' '.join(str(error).split())[:300]}); remove it, or go on from another one (--resume "
                "RUN/checkpoints/STEP)"
            ) from error

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: the run goes on from this one."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()


def _named(state: State) -> dict[str, jax.Array]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
