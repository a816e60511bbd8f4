"""Suite `inference` of `inspect`: prefill and a decoding step, compiled for a GPU that is not there."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from bench import report
from bench.inspect import compile_program, tools
from bench.inspect.targets import find_target
from bench.inspect_model import IMPLEMENTATIONS, StepFigures, figures
from bench.model_step import BATCH, CONFIG, LENGTH
from bench.report import table
from megalodon_jax import MegalodonConfig, MegalodonForCausalLM, init_cache
from megalodon_jax.precision import cast_weights
from pallas_kernels import use_implementation

TARGETS = ("sm_90",)
PROGRAMS = ("forward", "prefill", "decode")


def program(name: str, config: MegalodonConfig = CONFIG) -> tuple[Callable, tuple[Any, ...]]:
    """A jitted program and its abstract arguments: parameters and ids, for decoding the cache too, given away.

    Weights are cast before decoding, as in a loop of many steps.
    """
    abstract = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)  # noqa: E731
    model = eqx.filter_eval_shape(MegalodonForCausalLM, config, key=jax.random.key(0))
    model = eqx.filter_eval_shape(cast_weights, model) if name == "decode" else model
    parameters, static = eqx.partition(model, abstract)
    ids = jax.ShapeDtypeStruct((BATCH, 1 if name == "decode" else LENGTH), jnp.int32)
    if name != "decode":
        run = lambda parameters, ids: eqx.combine(parameters, static)(ids, return_cache=name == "prefill")  # noqa: E731
        return jax.jit(run), (parameters, ids)
    allocate = {"allocate_kv": True, "allocate_norm": True, "allocate_ema": True}
    cache = jax.eval_shape(lambda: init_cache(config, BATCH, **allocate))
    decode = lambda parameters, ids, cache: eqx.combine(parameters, static)(ids, cache=cache, return_cache=True)  # noqa: E731
    return jax.jit(decode, donate_argnums=2), (parameters, ids, cache)


def run(targets: Sequence[str] = TARGETS, json_file: Path | None = None) -> None:
    """Compile, print the tables, write everything to `json_file` if given. Exits with 1 where wheels are missing."""
    jax.config.update("jax_platforms", "cpu")
    if reason := tools.missing():
        sys.exit(reason)
    found = {target: measure(target) for target in dict.fromkeys(targets)}
    print(", ".join(f"{name} {version}" for name, version in tools.versions().items()))
    print(
        "Compiled without a GPU: nothing was run or timed on one. Matmuls are not tuned without a GPU.\n"
        f"A model of {CONFIG.num_layers} layers of dimension {CONFIG.model_dim}, bfloat16 compute, B = {BATCH};\n"
        f"forward and prefill of L = {LENGTH}, decode of one token, with weights cast before."
    )
    for target, programs in found.items():
        print(f"\n{target}: {find_target(target).card}\n")
        rows = [
            [name, which, f"{one.bytes_moved / 1e9:.3f}", f"{one.temporary_bytes / 1e9:.3f}", str(one.launches)]
            for name, by in programs.items()
            for which, one in by.items()
        ]
        print(table(["program", "operations", "GB moved", "temp GB", "launches"], rows, left=2))
    if json_file is not None:
        record = {
            target: {name: {i: asdict(one) for i, one in by.items()} for name, by in programs.items()}
            for target, programs in found.items()
        }
        report.write_json({"versions": tools.versions(), "targets": record}, json_file)


def measure(target: str) -> dict[str, dict[str, StepFigures]]:
    """Figures by program and implementations."""
    found = {}
    for name in PROGRAMS:
        found[name] = {}
        for implementation in ("kernels", "XLA"):
            print(f"compiling {name} with {implementation} for {target} ...", file=sys.stderr, flush=True)
            with use_implementation(**IMPLEMENTATIONS[implementation]):
                function, arguments = program(name)
                found[name][implementation] = figures(
                    compile_program(function, *arguments, target=target, kernels="none")
                )
    return found
