"""Configs of the baselines: sizes, switches and dtypes, validated, hashable, JSON in and out."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import jax.numpy as jnp

GELU = Literal["tanh", "exact"]
FFN_MULTIPLE = 256  # of which a width of Llama's feed-forward layer is one

Config = TypeVar("Config", bound="BaselineConfig")

_DTYPES = ("param_dtype", "compute_dtype")


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """What every baseline has.

    Attributes:
        model: what it is called in configs and checkpoints.
        vocab_size: V.
        bos_token_id, eos_token_id: for `generate`, as in `MegalodonConfig`.
        param_dtype: of weights and their biases; gains and biases of norms are float32.
        compute_dtype: of operands and results of products, whose sums are float32, and of the residual stream.
    """

    model: ClassVar[str]

    vocab_size: int
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    param_dtype: Any = jnp.float32
    compute_dtype: Any = jnp.float32

    def __post_init__(self):
        self._require_positive_ints("vocab_size")
        for name in ("bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            if value is not None and not (_is_int(value) and 0 <= value < self.vocab_size):
                raise ValueError(f"{name} must be None or an int in [0, {self.vocab_size}), got {value!r}")
        for name in _DTYPES:
            object.__setattr__(self, name, _float_dtype(name, getattr(self, name)))

    @property
    def effective_output_size(self) -> int:
        """Width of the logits."""
        return self.vocab_size

    def to_json(self) -> str:
        """The config as a JSON object, one key per field and the model's name; dtypes by name."""
        fields = dataclasses.asdict(self)
        named = {k: v.name if k in _DTYPES else v for k, v in fields.items()}
        return json.dumps({"model": self.model, **named}, indent=2)

    @classmethod
    def from_json(cls: type[Config], text: str) -> Config:
        """The config written by `to_json`; fields left out take their defaults.

        Raises:
            ValueError: not a JSON object, of another model, an unknown key, or a field out of range.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"config is not valid JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"config must be a JSON object, got {type(fields).__name__}")
        if (model := fields.pop("model", cls.model)) != cls.model:
            raise ValueError(f"model must be {cls.model!r} for a {cls.__name__}, got {model!r}")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(fields.keys() - known):
            raise ValueError(f"unknown config key {', '.join(unknown)}; the keys are {', '.join(sorted(known))}")
        return cls(**fields)

    def _require_positive_ints(self, *names: str) -> None:
        for name in names:
            if not _is_int(value := getattr(self, name)) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value!r}")

    def _require_bool(self, name: str) -> None:
        if not isinstance(value := getattr(self, name), bool):
            raise ValueError(f"{name} must be a bool, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(BaselineConfig):
    """Sizes of `Llama`.

    `ffn_dim_multiplier` times `dim`, cut to an integer and rounded up to a multiple of 256, is the width of the
    feed-forward layer. `max_seq_len` is the longest sequence, and the size of the cache.

    Raises:
        ValueError: a field out of range; the message names the field and the rule.
    """

    model: ClassVar[str] = "llama"

    vocab_size: int = 256
    dim: int = 384
    depth: int = 6
    heads: int = 6
    dim_head: int = 64
    ffn_dim_multiplier: float = 2.67
    max_seq_len: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied_embedding: bool = True

    def __post_init__(self):
        super().__post_init__()
        self._require_positive_ints("dim", "depth", "heads", "dim_head", "max_seq_len")
        self._require_positive("ffn_dim_multiplier", "rope_theta", "norm_eps")
        self._require_bool("tied_embedding")
        if self.dim_head % 2:
            raise ValueError(f"dim_head must be even, got {self.dim_head}: rotary embedding turns pairs")

    @property
    def ffn_dim(self) -> int:
        """Width of the feed-forward layer."""
        return math.ceil(int(self.ffn_dim_multiplier * self.dim) / FFN_MULTIPLE) * FFN_MULTIPLE

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return self.depth

    @property
    def num_heads(self) -> int:
        """Number of attention heads."""
        return self.heads

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim_head

    @property
    def max_stream_len(self) -> int:
        """Tokens that a sequence can have."""
        return self.max_seq_len


@dataclass(frozen=True, kw_only=True)
class GPTConfig(BaselineConfig):
    """Sizes of `GPT`, by nanoGPT's names.

    `bias` is that of linear layers and norms. `dropout` is that of embeddings, attention weights and the results of
    both halves of a block. `gelu` is the tanh approximation, as in GPT-2, or the exact function. `block_size` is the
    longest sequence, and the size of the cache.

    Raises:
        ValueError: a field out of range; the message names the field and the rule.
    """

    model: ClassVar[str] = "gpt"

    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True
    gelu: GELU = "tanh"
    norm_eps: float = 1e-5

    def __post_init__(self):
        super().__post_init__()
        self._require_positive_ints("block_size", "n_layer", "n_head", "n_embd")
        self._require_positive("norm_eps")
        self._require_bool("bias")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} must be divisible by n_head {self.n_head}")
        rate = self.dropout
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0.0 <= rate <= 1.0:
            raise ValueError(f"dropout must be in [0, 1], got {rate!r}")
        if self.gelu not in ("tanh", "exact"):
            raise ValueError(f"gelu must be 'tanh' or 'exact', got {self.gelu!r}")

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return self.n_layer

    @property
    def num_heads(self) -> int:
        """Number of attention heads."""
        return self.n_head

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.n_embd // self.n_head

    @property
    def max_stream_len(self) -> int:
        """Tokens that a sequence can have."""
        return self.block_size


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _float_dtype(name: str, value: Any) -> jnp.dtype:
    try:
        dtype = jnp.dtype(value)
    except TypeError as error:
        raise ValueError(f"{name} must be float32 or bfloat16, got {value!r}") from error
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"{name} must be float32 or bfloat16, got {value!r}")
    return dtype
