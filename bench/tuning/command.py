"""`python -m bench tune`: on a GPU, searches tiles and keeps what is faster; without one, ranks tiles by the model."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from bench import ops
from bench.gpu.checks import said
from bench.gpu.command import prepare
from bench.gpu.device import NoDevice
from bench.gpu.session import Session, begin
from bench.gpu.suite_ops import NAMES
from bench.inspect import TARGETS, tools
from bench.markdown import table
from bench.ops import Titled
from bench.problems import chosen
from bench.tuning import modelled
from bench.tuning.measured import Measure
from bench.tuning.search import Trial, search
from megalodon_jax.cli.arguments import positive_float
from pallas_kernels._architecture import Architecture, architecture
from pallas_kernels._settings import Settings
from pallas_kernels._tiles import AnyTiles, Launch
from pallas_kernels._tuning import Entry, cache_file, read_cache, write_cache

MINUTES = 10.0
TARGET = "sm_90"
_SHOWN = 8  # trials of a kernel


@dataclass(frozen=True)
class Result:
    """What was tried for one kernel of a problem, whether its time was up, and whether the best is to be kept."""

    title: str
    launch: Launch
    trials: list[Trial]
    time_is_up: bool
    kept: bool = False

    @property
    def ranked(self) -> list[Trial]:
        """The best first."""
        return sorted((one for one in self.trials if one.cost is not None), key=lambda one: one.cost or 0.0)

    @property
    def entry(self) -> Entry:
        """Of the tuning cache, with the best tiles."""
        return self.launch.kernel, self.launch.target, self.launch.shape, self.ranked[0].tiles


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument(
        "--spec",
        nargs="+",
        default=NAMES,
        metavar="NAME",
        help=f"problems to tune for (default: {', '.join(map(repr, NAMES))})",
    )
    parser.add_argument(
        "--minutes", type=positive_float, default=MINUTES, metavar="M",
        help=f"for all of them together (default: {MINUTES:g})",
    )  # fmt: skip
    parser.add_argument(
        "--target", choices=TARGETS, help=f"rank for this GPU by the static model (default, without a GPU: {TARGET})"
    )


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Search, print what was tried, write the tuning cache; bad input is for `parser` to report."""
    file = cache_file()
    try:
        specs, known = chosen(ops.PRESETS, options.spec), read_cache(file)
    except ValueError as error:
        parser.error(str(error))
    session = None if options.target else _on_gpu()
    seconds = 60 * options.minutes
    if session is None:
        if reason := tools.missing():
            sys.exit(f"bench tune: no NVIDIA GPU here, and the static model needs one more thing: {reason}")
        print(f"No GPU is used: ranked by the static model for {options.target or TARGET}; nothing is written.\n")
        for result in ranked(specs, options.target or TARGET, seconds):
            print(text(result))
        return
    gpu = architecture(Settings())
    if isinstance(gpu, str):
        sys.exit(f"bench tune: {gpu}")
    try:
        prepare(file.parent, "the tuning cache (PALLAS_KERNELS_CACHE_DIR)")
    except ValueError as error:
        parser.error(str(error))
    for result in tuned(specs, gpu, session, seconds):
        print(text(result), flush=True)
        if result.kept:
            known = merged(known, result.entry)
            write_cache(file, known)
    print(f"The tuning cache is {file}; programs read it when they import pallas_kernels.")


def _on_gpu() -> Session | None:
    try:
        return begin("gpu")
    except NoDevice:
        return None


def ranked(specs: Titled, target: str, seconds: float) -> Iterator[Result]:
    """By the static model."""
    for title, spec, launch, deadline in _turns(specs, Architecture.of(target), seconds):
        cost = partial(modelled.cost, spec, launch.kernel, target)
        yield Result(title, launch, *search(launch.tiles, cost, deadline))


def tuned(specs: Titled, gpu: Architecture, session: Session, seconds: float) -> Iterator[Result]:
    """On the GPU at hand."""
    for title, spec, launch, deadline in _turns(specs, gpu, seconds):
        measure = Measure(spec, launch.kernel, session)
        yield judged(Result(title, launch, *search(launch.tiles, measure.cost, deadline)), measure.faster)


def judged(found: Result, faster: Callable[[AnyTiles, AnyTiles], bool]) -> Result:
    """Are the best tiles faster than the first, side by side? Those that fail there are left out."""
    while found.ranked and (best := found.ranked[0]).tiles != found.launch.tiles:
        try:
            return replace(found, kept=faster(best.tiles, found.launch.tiles))
        except Exception as error:  # as in the search
            failed = replace(best, cost=None, reason=f"side by side with the first: {said(error)}")
            found = replace(found, trials=[failed if one is best else one for one in found.trials])
    return found


def _turns(specs: Titled, gpu: Architecture, seconds: float):
    """Each kernel with the time until which it may be searched for: what is left is shared evenly by those to come."""
    todo = [(title, spec, one) for title, spec in specs.items() for one in ops.of(spec).launches(spec, gpu)]
    end = time.monotonic() + seconds
    for number, turn in enumerate(todo):
        now = time.monotonic()
        if now < end:
            print(f"searching for {turn[0]}, {turn[2].kernel} ...", file=sys.stderr, flush=True)
        yield *turn, now + max(0.0, end - now) / (len(todo) - number)


def merged(entries: tuple[Entry, ...], new: Entry) -> tuple[Entry, ...]:
    """A tuning cache in which `new` takes the place of what was there for its kernel, target and shape."""
    return (*(entry for entry in entries if entry[:3] != new[:3]), new)


def text(result: Result) -> str:
    """A table of the best trials of a kernel and of the first one, how many there were, and those left out."""
    shown = result.ranked[:_SHOWN]
    shown += [one for one in result.ranked[_SHOWN:] if one.tiles == result.launch.tiles]
    note = {result.launch.tiles: result.launch.source} | ({result.ranked[0].tiles: "kept"} if result.kept else {})
    rows = [[str(one.tiles), f"{one.cost:.4f}", note.get(one.tiles, "")] for one in shown]
    lines = [f"## {result.title}, {result.launch.kernel}", ""]
    lines += [table(("tiles", "ms", ""), rows), ""] if rows else []
    failed = [f"- left out: {one.tiles}: {one.reason}" for one in result.trials if one.cost is None]
    end = ", then the time was up (--minutes)" if result.time_is_up else ""
    return "\n".join([*lines, f"{len(result.trials)} tried{end}.", *failed, ""])
