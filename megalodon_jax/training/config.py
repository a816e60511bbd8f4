"""What a run is, in frozen sections with defaults. A key is `section.field`, or a field of `TrainingConfig` itself."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from megalodon_jax.training.settings import (
    Count,
    Fraction,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Range,
    read_section,
)

ModelName = Literal["megalodon", "llama", "gpt"]
InitFrom = Literal["scratch", "resume", "gpt2"]
Rule = Literal["auto", "literature", "seed_95m"]

# A resumed run may change these; everything else decides what the weights become.
MAY_CHANGE = (
    "run_dir", "steps", "init_from", "init_weights", "mesh", "compilation_cache", "evaluation", "checkpoint", "log",
    "samples",
)  # fmt: skip


@dataclass(frozen=True)
class Data:
    """What is read.

    Attributes:
        path: a file of bytes, plain or .gz, or of token ids; null: text that comes with Python.
        tokens: "bytes", or the dtype of a file of token ids, little-endian and nothing else.
        sequence_length: T, tokens that go in; a window has one more, so that each predicts the next.
        split: as in `megalodon_jax.training.splits`.
        document_separator: the token that ends a document, which no other document then sees; null: one long text.
    """

    path: str | None = None
    tokens: Literal["bytes", "uint16", "uint32"] = "bytes"
    sequence_length: Positive = 512
    split: Rule | tuple[Fraction, Fraction, Fraction] = "auto"
    document_separator: Count | None = None

    @property
    def unit(self) -> str:
        """What a token is called."""
        return "byte" if self.tokens == "bytes" else "token"


@dataclass(frozen=True)
class Optimizer:
    """How parameters change.

    Attributes:
        name: "adamw" decays the matrices, outside Adam; "adam_l2" adds the decay of every parameter to its gradient.
        learning_rate: at its peak.
        schedule: after the warm-up the rate stays, or falls along a cosine.
        warmup_steps: over which the rate grows from 0.
        decay_steps: at which the cosine ends; null: at the last step of the run.
        min_learning_rate: where the cosine ends.
        gradient_clip: largest norm of the whole gradient; 0: no limit.
        most_bad_steps: a loss or gradient that is not finite changes nothing; after so many in a row the run ends.
    """

    name: Literal["adamw", "adam_l2"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: Count = 0
    decay_steps: Positive | None = None
    min_learning_rate: NonNegativeFloat = 0.0
    weight_decay: NonNegativeFloat = 0.1
    beta1: Annotated[float, Range(0, 1, below=True)] = 0.9
    beta2: Annotated[float, Range(0, 1, below=True)] = 0.95
    epsilon: Annotated[float, Range(1e-30)] = 1e-8
    gradient_clip: NonNegativeFloat = 1.0
    most_bad_steps: Positive = 10

    def __post_init__(self):
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate must be at most learning_rate {self.learning_rate:g}, "
                f"got {self.min_learning_rate:g}"
            )
        if self.decay_steps is not None and self.decay_steps < self.warmup_steps:
            raise ValueError(
                f"decay_steps, where the cosine ends, must be at least warmup_steps {self.warmup_steps}, "
                f"got {self.decay_steps}"
            )


@dataclass(frozen=True)
class Mesh:
    """Devices of a run, data * fsdp in all: one, or all that there are.

    Attributes:
        data: parts of the batch, computed with the same parameters.
        fsdp: parts of parameters and optimizer; each is a part of the batch too.
    """

    data: Positive = 1
    fsdp: Positive = 1


@dataclass(frozen=True)
class Evaluation:
    """What is measured on the way, on the same windows every time, without dropout.

    Attributes:
        every: steps between evaluations of training and validation part, from step 0 on; 0: only where a run ends.
        windows: of each part, evenly spaced; null: all of them.
        patience: evaluations without a new best after which the run ends; 0: it goes on.
        sequential: the part that is read from its beginning to its end when the run ends, with all that came before as
            context where the model streams.
    """

    every: Count = 100
    windows: Positive | None = 100
    patience: Count = 0
    sequential: Literal["none", "validation", "test"] = "none"


@dataclass(frozen=True)
class Checkpoint:
    """`every` how many steps one is written (0: only where a run ends), and how many of the latest are kept.

    The one with the best validation loss is written and kept besides.
    """

    every: Count = 500
    keep: Positive = 2


@dataclass(frozen=True)
class Log:
    """`every` how many steps a record is written, means over those steps; `profile`: first and last step of a trace."""

    every: Positive = 10
    tensorboard: bool = False
    profile: tuple[Count, Count] | None = None

    def __post_init__(self):
        if self.profile is not None and self.profile[0] >= self.profile[1]:
            raise ValueError(f"profile must be a first step and a later last one, got {list(self.profile)}")


@dataclass(frozen=True)
class Samples:
    """Text drawn `every` how many steps (0: never) after a prompt of validation tokens; drawing as in `Sampling`."""

    every: Count = 0
    prompt_length: Positive = 128
    length: Positive = 128
    temperature: NonNegativeFloat = 1.0
    top_k: Positive | None = None
    top_p: Annotated[float, Range(0, 1, excluded=True)] | None = None
    min_p: Fraction | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """A whole run; build it by `from_dict`, which checks types and ranges.

    Attributes:
        run_dir: folder of the run.
        seed: of initial weights, batches, dropout and samples.
        steps: updates.
        batch_size: rows that are computed at a time, by all devices together.
        accumulate: how many such batches make one update.
        model: which of the sections `megalodon`, `llama`, `gpt` counts; they hold fields of the models' configs.
        init_from: "scratch", drawn weights; "gpt2", weights and sizes of the GPT-2 in `init_weights`; or "resume", the
            latest checkpoint in `run_dir`.
        init_weights: a folder with GPT-2's config.json and model.safetensors.
        output_std: standard deviation that the weight which gives the logits starts with; null: what the model draws.
        compilation_cache: folder of compiled programs, which later runs share; null: none.
    """

    run_dir: str = "runs/default"
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    steps: Positive = 1000
    batch_size: Positive = 1
    accumulate: Positive = 1
    init_from: InitFrom = "scratch"
    init_weights: str | None = None
    output_std: PositiveFloat | None = None
    compilation_cache: str | None = None
    model: ModelName = "megalodon"
    megalodon: dict[str, Any] = field(default_factory=dict)
    llama: dict[str, Any] = field(default_factory=dict)
    gpt: dict[str, Any] = field(default_factory=dict)
    mesh: Mesh = Mesh()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    samples: Samples = Samples()

    def __post_init__(self):
        devices = self.mesh.data * self.mesh.fsdp
        if self.batch_size % devices:
            raise ValueError(
                f"batch_size must be a multiple of mesh.data * mesh.fsdp, which is {devices}, got {self.batch_size}"
            )
        if self.init_from == "gpt2" and (self.model, self.output_std) != ("gpt", None):
            raise ValueError(
                f"init_from is gpt2: model must be gpt and output_std null, got {self.model} and {self.output_std}"
            )
        if (self.init_from == "gpt2") != (self.init_weights is not None):
            raise ValueError(
                "init_weights must be a folder with GPT-2's weights where init_from is gpt2, and null elsewhere; "
                f"got {self.init_weights} where it is {self.init_from}"
            )
        if self.evaluation.sequential != "none" and self.data.document_separator is not None:
            raise ValueError(
                "evaluation.sequential reads one text from its beginning to its end; it must be none where "
                "data.document_separator parts the text into documents"
            )

    @classmethod
    def from_dict(cls, values: Any) -> "TrainingConfig":
        """The config with these values (`to_dict` gives them), all others at their defaults.

        Raises:
            ValueError: an unknown key or a value that is not allowed, by its dotted name; the allowed ones are listed.
        """
        return read_section(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """The config as plain values, for YAML and JSON."""
        return dataclasses.asdict(self, dict_factory=_plain)

    def differences(self, other: "TrainingConfig") -> list[str]:
        """Dotted keys, outside `MAY_CHANGE` and the sections of other models, in which two runs differ."""
        mine, theirs = (_flat(config.to_dict()) for config in (self, other))
        unused = {"megalodon", "llama", "gpt"} - {self.model}
        keys = [key for key in sorted(mine | theirs) if key.split(".")[0] not in {*MAY_CHANGE, *unused}]
        return [key for key in keys if mine.get(key) != theirs.get(key)]


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in pairs}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
