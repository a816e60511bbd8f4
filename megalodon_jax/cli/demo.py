"""`demo`: the whole way in a few minutes: train on real text, save, load, generate, compare with compressors."""

import argparse
from pathlib import Path

from megalodon_jax.checkpoint import CONFIG, WEIGHTS, load_checkpoint
from megalodon_jax.cli import arguments, defaults, doctor, sampling
from megalodon_jax.cli.data import load_corpus
from megalodon_jax.cli.errors import bad_input, require_extra_train
from megalodon_jax.parameters import named_parameters

_PROMPT_BYTES = 64
_SAMPLE_BYTES = 400
_TEMPERATURE = 0.8


def add_parser(subcommands) -> None:
    """Declare the subcommand."""
    parser: argparse.ArgumentParser = subcommands.add_parser(
        "demo",
        help="train for two minutes on a CPU, then generate text",
        description="Train a small byte model, save it, generate from it, and compare it with gzip and bzip2.",
    )
    parser.add_argument(
        "--out", type=Path, default=defaults.DEMO_FOLDER, metavar="DIR",
        help=f"folder for the checkpoint and the curve, replaced if there (default: {defaults.DEMO_FOLDER})",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", type=arguments.positive_float, default=defaults.MINUTES,
        help=f"training time after compilation (default: {defaults.MINUTES:g})",
    )  # fmt: skip
    parser.add_argument("--steps", type=arguments.positive_int, help="train this many steps instead of --minutes")
    arguments.add_data(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Everything in order, each step announced.

    Raises:
        CommandError: bad input.
    """
    require_extra_train()
    from megalodon_jax.cli import loop, run

    corpus = load_corpus(options.data, defaults.SEQUENCE_LENGTH)
    run.prepare(options.out)
    model = defaults.initial_model(defaults.MODEL, options.seed)
    settings = loop.Options(
        defaults.BATCH_SIZE, defaults.SEQUENCE_LENGTH, defaults.LEARNING_RATE,
        steps=options.steps, seconds=60 * options.minutes, seed=options.seed,
    )  # fmt: skip
    size = sum(leaf.size for leaf in named_parameters(model).values())
    budget = f"{options.steps} steps" if options.steps else f"{options.minutes:g} minutes"
    print(doctor.report())
    print(f"\ncorpus: {corpus.source}; {len(corpus.train)} bytes to train on, {len(corpus.held_out)} held out")
    print(f"model: {size} parameters, {defaults.MODEL.num_layers} layers, dim {defaults.MODEL.model_dim}")
    print(f"compiling, then training for {budget}", flush=True)
    history, baselines = run.run(model, corpus, settings, options.out)
    print(
        f"{history[-1].step} steps in {history[-1].seconds:.0f} s, after {history[-1].compile_seconds:.0f} s to compile"
    )

    prompt = corpus.held_out[:_PROMPT_BYTES].tobytes()
    print(
        f"\ntext from the checkpoint in {options.out}, at temperature {_TEMPERATURE}; the first {len(prompt)} bytes are"
    )
    print(f"the prompt, from the held-out text:\n\n{prompt.decode(errors='replace')}", end="", flush=True)
    with bad_input():
        loaded = load_checkpoint(options.out)
    for piece in sampling.decoded(
        sampling.stream_bytes(loaded, prompt, _SAMPLE_BYTES, options.seed, temperature=_TEMPERATURE)
    ):
        print(piece, end="", flush=True)

    held_out = history[-1].held_out
    assert held_out is not None  # a run ends with an evaluation
    print("\n\n" + comparison(held_out, baselines, len(corpus.held_out), history[-1].bytes_seen))
    print("\n".join(f"wrote {options.out / name}" for name in (WEIGHTS, CONFIG, run.CURVE)))


def comparison(held_out: float, baselines: dict[str, float], size: int, seen: int) -> str:
    """The model's bits per byte beside the baselines', best first, and a plain statement of who wins."""
    rows = sorted([*baselines.items(), ("this model", held_out)], key=lambda row: row[1])
    ahead = [name for name, bits in rows if bits < held_out]
    verdict = f"{' and '.join(ahead)} beat the model" if ahead else "The model beats all of them"
    lines = [
        f"bits per byte on the same {size} held-out bytes:",
        *(f"  {name:<16} {bits:.3f}" for name, bits in rows),
        f"{verdict}; it has read {seen} bytes of training text, the others only the held-out bytes.",
    ]
    return "\n".join(lines)
