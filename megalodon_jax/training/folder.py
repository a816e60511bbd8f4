"""The folder of a run: what is in it, whether a run may begin there, and where it goes on.

RUN/config.yaml        the whole config            RUN/checkpoints/    training states
RUN/metrics.jsonl      one record per line         RUN/final/          the model at the end, for `generate`
RUN/tensorboard/       if asked for                RUN/profile/        if asked for
"""

import shutil
from pathlib import Path
from typing import NamedTuple

from megalodon_jax.atomic import leftovers, replacing
from megalodon_jax.training.checkpoints import Best, Checkpoints
from megalodon_jax.training.config import TrainingConfig
from megalodon_jax.training.config_files import load, to_yaml
from megalodon_jax.training.processes import is_first, together

CONFIG, METRICS, CHECKPOINTS = "config.yaml", "metrics.jsonl", "checkpoints"
FINAL, TENSORBOARD, PROFILE = "final", "tensorboard", "profile"
_OURS = (CONFIG, METRICS, CHECKPOINTS, FINAL, TENSORBOARD, PROFILE)
_AUTO = "auto"


class Point(NamedTuple):
    """A checkpoint to go on from."""

    checkpoints: Path
    step: int
    best: Best


def find_point(config: TrainingConfig, resume: str | None, overwrite: bool) -> Point | None:
    """Where the run goes on, None for a new one. Nothing is written.

    Args:
        config: of the run to be.
        resume: "auto": the latest checkpoint in config.run_dir, or a new run where it had none yet; a path: a run,
            or one of its checkpoints; None: a new run.
        overwrite: may what is in config.run_dir go away?

    Raises:
        ValueError: config.run_dir holds another run, `resume` no checkpoint, or one of a run with other settings.
    """
    folder = Path(config.run_dir)
    found = _newest(folder) if resume == _AUTO else None if resume is None else _named(Path(resume))
    if found is None:
        goes_on_here = resume == _AUTO and _ended_before_a_checkpoint(folder, config)
    else:
        goes_on_here = _same(found[0], folder / CHECKPOINTS)
    if _holds_run(folder) and not goes_on_here and not overwrite:
        said = "it has no checkpoint, or other settings;" if resume == _AUTO else "go on with it (--resume auto),"
        raise ValueError(
            f"{folder} holds a run already; {said} replace it (--overwrite), or choose another folder (run_dir=FOLDER)"
        )
    if found is None:
        return None
    with Checkpoints(found[0], None) as checkpoints:
        values, best = checkpoints.facts(found[1])
    if differing := config.differences(TrainingConfig.from_dict(values)):
        raise ValueError(
            f"the checkpoint of step {found[1]} in {found[0]} is of a run with other settings of "
            f"{', '.join(differing)}; go on with the same ones, or begin a new run"
        )
    return Point(*found, best)


def prepare(config: TrainingConfig, point: Point | None) -> None:
    """Make the folder and write the config; what is there of a run that does not go on is removed.

    Of several processes, which share the folder, the first does it, when none looks at it any more.

    Raises:
        OSError: the folder cannot be written.
    """
    together("before the folder is made")
    if is_first():
        _prepare(config, point)
    together("the folder is there")


def _prepare(config: TrainingConfig, point: Point | None) -> None:
    folder = Path(config.run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"run_dir {folder} cannot be made a folder ({error.strerror}); choose another") from error
    if point is None or not _same(point.checkpoints, folder / CHECKPOINTS):
        for name in _OURS:
            _remove(folder / name)
    for killed in leftovers(folder / CONFIG):
        killed.unlink(missing_ok=True)
    with replacing(folder / CONFIG) as file:
        file.write(to_yaml(config).encode())


def _newest(run: Path) -> tuple[Path, int] | None:
    folder = run / CHECKPOINTS
    if not folder.is_dir():
        return None
    with Checkpoints(folder, None) as checkpoints:
        steps = checkpoints.steps()
    return (folder, steps[-1]) if steps else None


def _named(path: Path) -> tuple[Path, int]:
    if path.parent.name == CHECKPOINTS and path.name.isdigit():
        with Checkpoints(path.parent, None) as checkpoints:
            if int(path.name) in checkpoints.steps():
                return path.parent, int(path.name)
    elif found := _newest(path):
        return found
    raise ValueError(f"{path} has no checkpoint; give the folder of a run, or RUN/{CHECKPOINTS}/STEP")


def _holds_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in _OURS)


def _ended_before_a_checkpoint(folder: Path, config: TrainingConfig) -> bool:
    """Is what is there no more than the beginning of this very run?"""
    if (folder / FINAL).exists() or not (folder / CONFIG).is_file():
        return False
    try:
        return not config.differences(load(str(folder / CONFIG)))
    except ValueError:
        return False


def _same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
