"""Suites `model`, `training` and `inference` on a GPU: whole models, operations by XLA, by kernels, matmuls fused.

Each is first run on one row of its batch: logits, loss and all gradients against the same model in float32 by XLA, by
the tolerance policy. The gradients are one vector: in bfloat16 either side is lucky in some of so many, and some are
nothing but rounding.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bench import model_programs, parity
from bench.decoding import random_ids
from bench.gpu.cases import Subject, differences, measure
from bench.gpu.checks import entry
from bench.gpu.session import Session
from bench.model_programs import MODEL_S, PROGRAMS, Shape, large
from bench.modes import Built, timed_compile
from megalodon_jax import MegalodonConfig, MegalodonForCausalLM, init_cache
from megalodon_jax.config import GemmBackend
from megalodon_jax.counting import parameter_counts
from megalodon_jax.precision import cast_weights
from pallas_kernels import strict, use_implementation
from pallas_kernels._settings import OPS

REFERENCE, KERNELS, FUSED = "XLA", "kernels", "fused matmuls"
SUITES = {"model": PROGRAMS, "training": ("training", "whole step"), "inference": ("prefill", "decode")}
SHAPES: dict[str, Callable[[], Shape]] = {
    "model S": lambda: MODEL_S,
    "model S, one row": lambda: replace(MODEL_S, batch=1),
    **{f"{name}, one layer": partial(large, name, 1) for name in model_programs.LARGE},
}
NAMES = ("model S",)
TINY = Shape(
    MegalodonConfig(
        vocab_size=64, model_dim=32, num_layers=1, z_dim=16, value_dim=32, ffn_hidden_dim=32, cema_ndim=2,
        chunk_size=16, norm_num_groups=4, pad_token_id=None, compute_dtype=jnp.bfloat16,
    ),
    batch=1,
    length=32,
)  # fmt: skip


def chosen(names: Iterable[str]) -> dict[str, Shape]:
    """The models of these names.

    Raises:
        ValueError: there is no such model.
    """
    for name in names:
        if name not in SHAPES:
            raise ValueError(f"no model {name!r}; there are {'; '.join(SHAPES)}")
    return {name: SHAPES[name]() for name in names}


def at_lengths(shapes: dict[str, Shape], lengths: Sequence[int]) -> dict[str, Shape]:
    """Every model at every length; as they are where there is none."""
    if not lengths:
        return shapes
    return {f"{title}, L = {n}": replace(shape, length=n) for title, shape in shapes.items() for n in lengths}


def run(suite: str, shapes: dict[str, Shape], session: Session) -> dict:
    """The record of these models in the programs of a suite."""
    checked, cases = [], []
    for title, shape in shapes.items():
        variants = _variants(session.kernel)
        print(f"measuring {title} ...", file=sys.stderr, flush=True)
        found = check(title, shape, variants, session)
        checked += found
        unproven = tuple(one["implementation"] for one in found if not one["passed"])
        for name in SUITES[suite]:
            subject = Subject(
                title=title,
                problem=describe(shape),
                length=shape.length,
                mode=name,
                implementations={one: partial(build, name, shape, one, session) for one in (REFERENCE, *variants)},
                unproven=unproven,
                operations=operations(name, shape),
                dtype=shape.config.compute_dtype.name,
                agree=partial(differences, dtype=shape.config.compute_dtype.name),
            )
            cases.append(measure(subject, session.clock, session.rounds, session.roofline))
    return session.record(suite, cases, checked)


def describe(shape: Shape) -> str:
    """Its sizes in words."""
    c = shape.config
    return (
        f"{c.num_layers} layers of dimension {c.model_dim}, chunks of {c.chunk_size}, vocabulary of {c.vocab_size}, "
        f"{c.compute_dtype.name}, B = {shape.batch}, L = {shape.length}"
    )


def check(title: str, shape: Shape, variants: Sequence[str], session: Session) -> list[dict]:
    """Parity of each variant on one row."""
    if not variants:
        return []
    row, session = replace(shape, batch=1), replace(session, seed=session.parity_seed)
    exact = replace(row, config=replace(row.config, compute_dtype=jnp.float32))
    truth = {name: value.astype(np.float64) for name, value in _values(exact, REFERENCE, session).items()}
    reference = _values(row, REFERENCE, session)

    def compare(variant: str) -> list[parity.Line]:
        lines = parity.compare_values(truth, _values(row, variant, session), reference)
        # The loss is one number, in which the reference may be lucky: rounding units of what it is computed in.
        compute = row.config.compute_dtype.name
        return [replace(line, dtype=compute) if line.name == "loss" else line for line in lines]

    return [entry(title, describe(row), row.length, partial(compare, one), one) for one in variants]


def _values(shape: Shape, variant: str, session: Session) -> dict[str, np.ndarray]:
    programs = (build(name, shape, variant, session) for name in ("forward", "training"))
    return {name: np.asarray(value) for one in programs for name, value in one.values(one.run()).items()}


def _variants(kernel: str | None) -> tuple[str, ...]:
    return () if kernel is None else (KERNELS, FUSED)


def build(name: str, shape: Shape, variant: str, session: Session) -> Built:
    """One of `model_programs.PROGRAMS`, compiled; what a call gives away comes from the results of the one before."""
    backend: GemmBackend = "fused" if variant == FUSED else "default"
    shape = replace(shape, config=replace(shape.config, gemm_backend=backend))
    named = "xla" if variant == REFERENCE else session.kernel
    # On a GPU the best of each op, one token by XLA; a kernel that refuses is an error, and named.
    with use_implementation(**({} if named == "triton" else dict.fromkeys(OPS, named))), strict():
        jitted, abstract = model_programs.program(name, shape)
        compiled, seconds = timed_compile(jitted, *abstract)
    held = [_arguments(name, shape, session.seed, abstract)]

    def call() -> Any:
        found = jax.block_until_ready(compiled(*held[0]))
        parameters, ids, *_ = held[0]
        if name == "decode":
            held[0] = parameters, ids, found[1]
        elif name == "whole step":
            held[0] = found[0], ids, found[1]
        return found

    return Built(call, compiled.memory_analysis(), seconds, partial(_outputs, name))


def _arguments(name: str, shape: Shape, seed: int, abstract: tuple) -> tuple:
    """Random parameters and ids; for the others an empty cache, and moments of zero."""
    model = MegalodonForCausalLM(shape.config, key=jax.random.key(seed))
    ids = random_ids(model, shape.batch, shape.length, seed)
    if name == "decode":
        allocate = {"allocate_kv": True, "allocate_norm": True, "allocate_ema": True}
        model, ids, cache = cast_weights(model), ids[:, :1], init_cache(shape.config, shape.batch, **allocate)
        others = (cache,)
    else:
        others = tuple(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rest) for rest in abstract[2:])
    return (eqx.filter(model, eqx.is_array), ids, *others)


def _outputs(name: str, found: Any) -> dict[str, jax.Array]:
    if name == "training":
        gradients = [jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(found[1])]
        return {"loss": found[0], "dparameters": jnp.concatenate(gradients)}
    return {"loss": found[2]} if name == "whole step" else {"logits": found[0]}


def operations(name: str, shape: Shape) -> int:
    """Floating-point operations of the products with parameters: two for each number, three times that in training."""
    counts = parameter_counts(shape.config)
    numbers = counts["projections"] + counts["ffn"] + (counts["head"] or counts["embedding"])
    tokens = shape.batch * (1 if name == "decode" else shape.length)
    return 2 * tokens * numbers * (3 if name in SUITES["training"] else 1)
