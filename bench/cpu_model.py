"""Suite `model` on CPU: a whole model against the same model in plain formulations, and decoding against PyTorch.

forward, training step (loss and gradients) and prefill of a small model, ours and plain (`bench.plain_model`), side by
side, CPU time and the memory that their temporaries need at most; a decoding step of model S in float32, beside plain
decoding and the PyTorch oracle's cached eager step. Nothing is measured unless logits, gradients and states agree.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp

from bench import environment, plain_decoding, plain_model, report
from bench.decoding import (
    MOST_ERROR,
    agree,
    cache_after,
    first_token,
    interleaved_tokens,
    random_ids,
    steps,
    torch_steps,
)
from bench.measure import CpuTime, interleaved, median_time
from bench.model_programs import MODEL_S
from bench.programs import Program
from bench.targets import Verdict
from megalodon_jax import MegalodonConfig, MegalodonForCausalLM, decode_step, init_cache

SMALL = MegalodonConfig(
    vocab_size=8192, model_dim=256, num_layers=4, z_dim=128, value_dim=1024, ffn_hidden_dim=1280, chunk_size=256,
    pad_token_id=None,
)  # fmt: skip
DECODED = dataclasses.replace(MODEL_S.config, compute_dtype=jnp.float32, pad_token_id=None)
LENGTHS = (2048,)
ROUNDS = 5
PROMPT = 100
LEAST = {"forward": 2.0, "training step": 1.8, "prefill": 2.0}  # plain / ours
TORCH = "PyTorch, eager"

Samples = dict[str, list[CpuTime]]


def run(lengths: Sequence[int] = LENGTHS, rounds: int = ROUNDS, json_file: Path | None = None) -> None:
    """Measure prompts of `lengths`, print the tables, and write everything to `json_file` if given."""
    jax.config.update("jax_platforms", "cpu")
    record = measure(SMALL, DECODED, lengths, rounds)
    print(text(record))
    if json_file is not None:
        report.write_json(record, json_file)


def measure(small: MegalodonConfig, decoded: MegalodonConfig, lengths: Sequence[int], rounds: int) -> dict:
    """Everything as plain data."""
    load = environment.load_average()
    samples, memory = {}, {}
    for length in lengths:
        print(f"measuring L = {length} ...", file=sys.stderr, flush=True)
        for name, programs in sequence_programs(small, length).items():
            part = f"{name}, L = {length}"
            samples[part] = interleaved(programs, rounds)
            memory[part] = {which: program.temp_bytes() for which, program in programs.items()}
    print("measuring decoding ...", file=sys.stderr, flush=True)
    samples["decode, a token"] = interleaved_tokens(decoding_programs(decoded), rounds)
    return {
        "versions": environment.versions(),
        "revision": environment.revision(),
        "machine": environment.machine(),
        "load_average": {"before": load, "after": environment.load_average()},
        "config": {"suite": "model", "rounds": rounds, "small": small.to_json(), "decoded": decoded.to_json()},
        "samples": {
            part: {name: [dataclasses.asdict(one) for one in found] for name, found in programs.items()}
            for part, programs in samples.items()
        },
        "medians": {
            part: {name: dataclasses.asdict(median_time(found)) for name, found in programs.items()}
            for part, programs in samples.items()
        },
        "temp_bytes": memory,
        "targets": [dataclasses.asdict(one) for one in verdicts(samples)],
    }


def sequence_programs(config: MegalodonConfig, length: int) -> dict[str, dict[str, Program]]:
    """Ours and plain by program, after a check that their logits, gradients and states agree."""
    model = MegalodonForCausalLM(config, key=jax.random.key(0))
    ids = random_ids(model, 1, length)
    functions = {
        "forward": (lambda model, ids: model(ids)[0], plain_model.forward),
        "training step": tuple(
            eqx.filter_value_and_grad(loss)
            for loss in (lambda model, ids: model.compute_loss(ids, ids), plain_model.loss)
        ),
        "prefill": (lambda model, ids: model(ids, return_cache=True), plain_model.prefill),
    }
    programs = {
        name: {which: _program(function, model, ids) for which, function in zip(("ours", "plain"), pair, strict=True)}
        for name, pair in functions.items()
    }
    found = {name: {which: program() for which, program in pair.items()} for name, pair in programs.items()}
    agree("forward", found["forward"]["ours"], found["forward"]["plain"])
    for ours, plain in zip(*(jax.tree.leaves(one) for one in found["training step"].values()), strict=True):
        agree(f"a gradient {ours.shape}", ours, plain)
    (logits, cache), (plain_logits, state) = found["prefill"].values()
    agree("prefill", logits, plain_logits)
    token = first_token(model)
    after, _ = eqx.filter_jit(plain_decoding.step)(model, token, state)
    agree("a token after prefill", decode_step(model, token, cache)[0], after)
    return programs


def _program(function: Callable, model: MegalodonForCausalLM, ids: jax.Array) -> Program:
    parameters, static = eqx.partition(model, eqx.is_array)
    compilable = jax.jit(lambda parameters, ids: function(eqx.combine(parameters, static), ids))
    return Program(compilable.lower(parameters, ids).compile(), (parameters, ids))


def decoding_programs(config: MegalodonConfig) -> dict[str, Callable[[], object]]:
    """Programs of several tokens after a prompt, after a check that their logits agree."""
    model = MegalodonForCausalLM(config, key=jax.random.key(0))
    prompt = random_ids(model, 1, PROMPT)
    cache = init_cache(config, 1, allocate_kv=True, allocate_norm=True, allocate_ema=True)
    _, state = eqx.filter_jit(plain_model.prefill)(model, prompt)
    programs = {
        "ours": steps(decode_step, model, cache_after(model, prompt, cache)),
        "plain": steps(eqx.filter_jit(plain_decoding.step), model, state),
        **torch_steps(model, prompt),
    }
    logits = {name: program() for name, program in programs.items()}
    for name in logits:
        agree(name, logits[name], logits["ours"])
    return programs


def verdicts(samples: Mapping[str, Samples]) -> list[Verdict]:
    """Of plain / ours, and of ours / PyTorch where that is installed."""
    found = []
    for part, programs in samples.items():
        ms = {name: median_time(one).total_ms for name, one in programs.items()}
        least = LEAST.get(part.split(",")[0])
        if least is not None:
            ratio = ms["plain"] / ms["ours"]
            found.append(Verdict(f"{part}: plain / ours >= {least:g}", ratio, ratio >= least))
        elif TORCH in ms:
            ratio = ms["ours"] / ms[TORCH]
            found.append(Verdict(f"{part}: ours / {TORCH} <= 1", ratio, ratio <= 1.0))
    return found


def text(record: dict) -> str:
    """One table of a record, and its targets."""
    load, config = record["load_average"], record["config"]
    rows = []
    for part, programs in record["medians"].items():
        for name, one in programs.items():
            times = (f"{one[key]:.1f}" for key in ("user_ms", "system_ms", "total_ms"))
            temporary = f"{record['temp_bytes'][part][name] / 1e6:.1f}" if part in record["temp_bytes"] else "-"
            rows.append([part, name, *times, f"{one['total_ms'] / programs['ours']['total_ms']:.2f}", temporary])
    return "\n\n".join(
        [
            ", ".join(f"{name} {version}" for name, version in record["versions"].items())
            + f"\n{record['machine']['cpu']}, {record['machine']['cores']} cores, load average {load['before']:.2f} "
            f"before and {load['after']:.2f} after, {config['rounds']} interleaved rounds\n"
            f"sequences: {_model(config['small'])}\ndecoding: {_model(config['decoded'])}\n"
            "plain: FFT convolution with directly computed powers, dense masked attention, whole logits.\n"
            f"Logits, every gradient and states agree: relative RMS of the difference below {MOST_ERROR:g}.",
            report.table(["program", "", "user ms", "sys ms", "CPU ms", "/ ours", "peak temporary MB"], rows, left=2),
            "\n".join(
                f"target {one['target']}: {'met' if one['met'] else 'MISSED'} ({one['figure']:.2f})"
                for one in record["targets"]
            ),
        ]
    )


def _model(written: str) -> str:
    c = MegalodonConfig.from_json(written)
    return (
        f"{c.num_layers} layers of dimension {c.model_dim}, Dk = {c.head_dim}, Dv = {c.value_head_dim}, "
        f"chunks of {c.chunk_size}, vocabulary of {c.vocab_size}, {c.compute_dtype.name}, B = 1"
    )
