"""Suite `inference` on CPU: what a state costs a forward, and what a token costs, anywhere in a stream.

prefill      a prompt in one call that returns the state, at the start or in mid-stream, beside the plain forward, and
             beside a scan over its tokens
decode       a token per call: early in a stream and far on in it, beside plain decoding and PyTorch's
generation   tokens per CPU second of `generate`, for batches
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import equinox as eqx
import jax
import jax.numpy as jnp

from bench import environment, plain_decoding, report
from bench.decoding import agree, cache_after, interleaved_tokens, random_ids, steps, torch_steps
from bench.measure import CpuTime, interleaved, median_time
from megalodon_jax import MegalodonConfig, MegalodonForCausalLM, decode_step, generate, init_cache

CONFIG = MegalodonConfig(
    vocab_size=1024, model_dim=256, num_layers=4, z_dim=64, value_dim=512, ffn_hidden_dim=640, chunk_size=512,
    pad_token_id=None, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
LENGTHS = (2048,)
ROUNDS = 7
NEAR, FAR = 100, 100_000
BATCHES = (1, 4, 16)
MOST_PREFILL = 1.25
GENERATED = 64
AGAIN = f"at {NEAR}, again"

Samples = dict[str, list[CpuTime]]


def run(lengths: Sequence[int] = LENGTHS, rounds: int = ROUNDS, json_file: Path | None = None) -> None:
    """Measure prompts of `lengths`, print the tables, and write everything to `json_file` if given."""
    jax.config.update("jax_platforms", "cpu")
    record = measure(CONFIG, lengths, rounds, far=FAR)
    print(text(record))
    if json_file is not None:
        report.write_json(record, json_file)


def measure(config: MegalodonConfig, lengths: Sequence[int], rounds: int, far: int) -> dict:
    """Everything as plain data."""
    model = MegalodonForCausalLM(config, key=jax.random.key(0))
    load = environment.load_average()
    samples = {f"prefill {length}": _prefill(model, length, rounds) for length in lengths}
    decode = samples["decode"] = _decode(model, rounds, far)
    samples["generation"] = interleaved({str(batch): _generate(model, batch) for batch in BATCHES}, rounds)
    return {
        "versions": environment.versions(),
        "revision": environment.revision(),
        "machine": environment.machine(),
        "load_average": {"before": load, "after": environment.load_average()},
        "config": {"suite": "inference", "rounds": rounds, "far": far, "model": config.to_json()},
        "samples": {
            part: {name: [dataclasses.asdict(sample) for sample in found] for name, found in programs.items()}
            for part, programs in samples.items()
        },
        "medians": {part: _medians(programs) for part, programs in samples.items()},
        "targets": [
            _prefill_target(name, length, samples[f"prefill {length}"])
            for length in lengths
            for name in ("prefill", f"prefill at {NEAR}")
        ]
        + [_decode_target(decode, far)],
    }


def text(record: dict) -> str:
    """The tables of a record."""
    load = record["load_average"]
    sections = [
        ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        + f"\n{record['machine']['cpu']}, {record['machine']['cores']} cores, "
        f"load average {load['before']:.2f} before and {load['after']:.2f} after, "
        f"{record['config']['rounds']} interleaved rounds, medians\n{_model(record['config']['model'])}"
    ]
    for part, programs in record["medians"].items():
        if part.startswith("prefill"):
            sections.append(_section(f"{part}: a prompt, CPU ms", programs, "forward", int(part.split()[1])))
    sections.append(_section("decode: one token, CPU ms", record["medians"]["decode"], f"at {NEAR}", 1))
    rates = [
        [batch, f"{GENERATED * int(batch) * 1e3 / ms:.0f}"] for batch, ms in record["medians"]["generation"].items()
    ]
    title = f"generate {GENERATED} tokens; the time is with that of the prompt, {NEAR} tokens"
    sections.append(f"{title}\n{report.table(['batch', 'new tokens per CPU second'], rates)}")
    sections.append(
        "\n".join(
            f"target {name}: {'met' if met else 'not met'} ({figure:.3f})" for name, figure, met in record["targets"]
        )
    )
    return "\n\n".join(sections)


def _prefill(model: MegalodonForCausalLM, length: int, rounds: int) -> Samples:
    print(f"measuring a prompt of {length} tokens ...", file=sys.stderr, flush=True)
    ids, before = random_ids(model, 1, length), random_ids(model, 1, NEAR, seed=1)
    start = plain_decoding.fresh(model, 1)
    slides = dataclasses.replace(model.config, max_cache_len=2 * model.config.chunk_size)
    sliding = MegalodonForCausalLM(slides, key=jax.random.key(0))  # the window changes no parameter
    forward = eqx.filter_jit(lambda model, ids: model(ids)[0])
    streamed = eqx.filter_jit(lambda model, ids, cache=None: model(ids, cache=cache, return_cache=True))
    plain = eqx.filter_jit(plain_decoding.prefill)
    programs = {
        "forward": lambda: jax.block_until_ready(forward(model, ids)),
        "prefill": lambda: jax.block_until_ready(streamed(model, ids)),
        f"prefill at {NEAR}": lambda: jax.block_until_ready(streamed(model, ids, cache)),
        "prefill, sliding, W = 2 C": lambda: jax.block_until_ready(streamed(sliding, ids)),
        "plain scan": lambda: jax.block_until_ready(plain(model, ids, start)),
    }
    _, cache = streamed(model, before)
    expected = programs["forward"]()
    for name in ("prefill", "plain scan"):
        agree(name, programs[name]()[0], expected)
    whole, _ = streamed(model, jnp.concatenate([before, ids], axis=1))
    agree(f"prefill at {NEAR}", programs[f"prefill at {NEAR}"]()[0], whole[:, NEAR:])
    return interleaved(programs, rounds)


def _decode(model: MegalodonForCausalLM, rounds: int, far: int) -> Samples:
    """Every program decodes TOKENS tokens and goes on from there; samples are of one token."""
    print(f"measuring decoding; {far} tokens first ...", file=sys.stderr, flush=True)
    prompt = random_ids(model, 1, NEAR)
    _, plain = eqx.filter_jit(plain_decoding.prefill)(model, prompt, plain_decoding.fresh(model, 1))
    cache = init_cache(model.config, 1, allocate_kv=True, allocate_norm=True, allocate_ema=True)
    programs: dict[str, Callable[[], object]] = {
        f"at {NEAR}": steps(decode_step, model, cache_after(model, prompt, cache)),
        AGAIN: steps(decode_step, model, cache_after(model, prompt, cache)),
        f"at {far}": steps(decode_step, model, cache_after(model, random_ids(model, 1, far), cache)),
        "plain": steps(eqx.filter_jit(plain_decoding.step), model, plain),
    }
    programs |= torch_steps(model, prompt)
    logits = {name: program() for name, program in programs.items()}
    for name in logits.keys() - {f"at {far}"}:
        agree(name, logits[name], logits[f"at {NEAR}"])
    return interleaved_tokens(programs, rounds)


def _generate(model: MegalodonForCausalLM, batch: int) -> Callable[[], object]:
    prompt = random_ids(model, batch, NEAR)
    return lambda: jax.block_until_ready(generate(model, prompt, GENERATED, temperature=0.0)[0])


def _medians(samples: Samples) -> dict[str, float]:
    return {name: median_time(found).total_ms for name, found in samples.items()}


def _prefill_target(name: str, length: int, samples: Samples) -> tuple[str, float, bool]:
    ratio = _medians(samples)[name] / _medians(samples)["forward"]
    return f"{name} / forward, L = {length} <= {MOST_PREFILL}", ratio, ratio <= MOST_PREFILL


def _decode_target(samples: Samples, far: int) -> tuple[str, float, bool]:
    """Noise is what two programs that do the same differ by: in half of the rounds by more."""
    differ = lambda name: [  # noqa: E731
        a.total_ms / b.total_ms - 1 for a, b in zip(samples[name], samples[f"at {NEAR}"], strict=True)
    ]
    noise, change = median(map(abs, differ(AGAIN))), abs(median(differ(f"at {far}")))
    return f"change of decoding from {NEAR} to {far} < noise ({noise:.3f})", change, change < noise


def _model(written: str) -> str:
    c = MegalodonConfig.from_json(written)
    return (
        f"{c.num_layers} layers of dimension {c.model_dim}, Dk = {c.head_dim}, Dv = {c.value_head_dim}, "
        f"chunks of {c.chunk_size}, vocabulary of {c.vocab_size}, {c.compute_dtype.name}"
    )


def _section(title: str, programs: dict[str, float], unit: str, tokens: int) -> str:
    rows = [
        [name, f"{ms:.2f}", f"{ms / programs[unit]:.2f}", f"{tokens * 1e3 / ms:.0f}"] for name, ms in programs.items()
    ]
    return f"{title}\n{report.table(['', 'ms', f'/ {unit}', 'tokens per CPU second'], rows, left=1)}"
