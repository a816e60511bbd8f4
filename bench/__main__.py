"""Command line of the benchmarks: `python -m bench {cpu,gpu,compare,tune,training,inspect,report}`."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec

from bench import (
    cpu_inference,
    cpu_model,
    cpu_ops,
    cpu_precision,
    cpu_stream,
    inspect_compile,
    inspect_model,
    inspect_ops,
    inspect_parity,
    inspect_rotary,
    inspect_tiles,
    inspect_toeplitz,
    ops,
    problems,
)
from bench.gpu import command as gpu
from bench.inspect import TARGETS
from bench.performance import command as performance
from bench.training import command as training
from bench.tuning import command as tune
from megalodon_jax.cli.arguments import output_file, output_picture, positive_int, seed

_CPU = {
    "ops": cpu_ops.run,
    "model": cpu_model.run,
    "inference": cpu_inference.run,
    "stream": cpu_stream.run,
    "precision": cpu_precision.run,
}
_INSPECT = {"ops": ops.PRESETS, "parity": ops.PARITY | ops.SHORTFALLS} | {
    suite: {} for suite in ("model", "compile", "rotary", "tiles", "toeplitz")
}
_OTHERS = {
    "gpu": gpu.run,
    "compare": gpu.run_compare,
    "training": training.run,
    "tune": tune.run,
    "report": performance.run,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that `arguments` (default: the command line) ask for."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "cpu":
        if options.rounds and options.suite in ("stream", "precision"):
            parser.error(f"--rounds is not for --suite {options.suite}, where nothing is timed")
        if options.png and options.suite != "ops":
            parser.error(f"--png is not for --suite {options.suite}, of which there is no picture")
        if options.png and find_spec("matplotlib") is None:
            parser.error('--png needs matplotlib: pip install "megalodon-pallas[bench]"')
        given = {"lengths": options.lengths, "rounds": options.rounds, "png": options.png}
        _CPU[options.suite](**{name: value for name, value in given.items() if value}, json_file=options.json)
        return
    if options.command in _OTHERS:
        _OTHERS[options.command](options, parser)
        return
    specs = _specs(options.suite, options.spec or (), parser)
    if options.target and options.suite in ("parity", "compile", "rotary", "tiles", "toeplitz"):
        parser.error(f"--target is not for --suite {options.suite}, which knows one")
    if options.seed is not None and options.suite != "parity":
        parser.error(f"--seed is not for --suite {options.suite}, where no value is computed")
    if options.suite == "parity":
        inspect_parity.run(specs, options.json, seed=options.seed or 0)
    elif options.suite == "compile":
        inspect_compile.run(options.json)
    elif options.suite == "rotary":
        inspect_rotary.run(options.json)
    elif options.suite == "tiles":
        inspect_tiles.run(options.json)
    elif options.suite == "toeplitz":
        inspect_toeplitz.run(options.json)
    elif options.suite == "model":
        inspect_model.run(options.target or inspect_model.TARGETS, options.json)
    else:
        inspect_ops.run(specs, options.target or inspect_ops.TARGETS, options.json)


def _specs(suite: str, names: Sequence[str], parser: argparse.ArgumentParser) -> ops.Titled:
    known = _INSPECT[suite]
    if names and not known:
        parser.error(f"--spec is not for --suite {suite}")
    try:
        return problems.chosen(known, names, f"--suite {suite} has others")
    except ValueError as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Benchmarks against plain JAX formulations, side by side in one process."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_cpu(commands.add_parser("cpu", help="CPU time, accuracy, temporary memory and growth with the length, on CPU"))
    gpu.add_options(commands.add_parser("gpu", help="time, memory and errors on a GPU, implementations side by side"))
    gpu.add_compare_options(commands.add_parser("compare", help="two records of `bench gpu`: ratios, and noise"))
    tune.add_options(commands.add_parser("tune", help="search tiles of the kernels on a GPU, and keep the faster ones"))
    beside = commands.add_parser("training", help="training beside PyTorch, and models beside each other, on CPU")
    training.add_options(beside)
    _add_json(beside)
    _add_inspect(
        commands.add_parser("inspect", help="the GPU kernels without a GPU: static figures, and parity with float64")
    )
    whole = commands.add_parser("report", help="the ops at full size beside their usual formulations, as Markdown")
    performance.add_options(whole)
    _add_json(whole)
    return parser


def _add_cpu(cpu: argparse.ArgumentParser) -> None:
    cpu.add_argument(
        "--suite",
        choices=_CPU,
        default="ops",
        help="ops: complex_ema against an FFT convolution and a lax.scan (the default); model: a whole model against "
        "plain formulations, decoding against PyTorch; inference: prefill, decoding and generation of a model; stream: "
        "a million tokens in uneven pieces against float64; precision: errors and training in bfloat16, "
        "mxfp8 and nvfp4",
    )
    cpu.add_argument(
        "--lengths",
        nargs="+",
        type=positive_int,
        metavar="L",
        help=f"sequence lengths (default: ops {' '.join(map(str, cpu_ops.LENGTHS))}, model {cpu_model.LENGTHS[0]}, "
        f"inference {cpu_inference.LENGTHS[0]}, stream {cpu_stream.LENGTHS[0]}); of precision, training steps "
        f"(default: {cpu_precision.STEPS[0]})",
    )
    cpu.add_argument(
        "--rounds",
        type=positive_int,
        metavar="R",
        help=f"interleaved rounds (default: {cpu_ops.ROUNDS}; of model, {cpu_model.ROUNDS}); not for stream "
        "and precision, where nothing is timed",
    )
    cpu.add_argument(
        "--png", type=output_picture, metavar="FILE", help="ops: draw time, error and memory against the length"
    )
    _add_json(cpu)


def _add_inspect(inspect: argparse.ArgumentParser) -> None:
    inspect.add_argument(
        "--suite",
        choices=_INSPECT,
        default="ops",
        help="ops: the ops compiled for a GPU that is not there, kernels beside XLA (the default; needs the extra "
        "inspect); parity: every output and gradient against float64, kernels and XLA side by side; model: forward, "
        "training step, prefill and decoding of whole models compiled, kernels on and off, and bytes by source line; "
        "compile: what a training step takes to compile as layers are added; rotary: queries and keys in a pass of "
        "their own or inside the attention kernels; tiles: other tiles for attention; toeplitz: complex_ema on tensor "
        "cores, which is not what the kernels do (all five need the extra too)",
    )
    inspect.add_argument(
        "--target",
        nargs="+",
        choices=TARGETS,
        metavar="SM",
        help=f"ops, model: GPUs to compile for, of {', '.join(TARGETS)} (default: {' '.join(inspect_ops.TARGETS)})",
    )
    inspect.add_argument(
        "--spec",
        nargs="+",
        metavar="NAME",
        help='only these problems (default: all), "complex_ema: headline" or, of every op, "headline"; '
        "ops then looks at each of them in detail",
    )
    inspect.add_argument("--seed", type=seed, metavar="N", help="parity: of the random inputs (default: 0)")
    _add_json(inspect)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write every figure here")


if __name__ == "__main__":
    main()
