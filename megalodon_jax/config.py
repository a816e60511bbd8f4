"""`MegalodonConfig`: every size, switch and dtype of a model, validated, hashable, JSON in and out."""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax.numpy as jnp

from megalodon_jax.counting import parameter_counts
from megalodon_jax.remat import POLICIES, Remat
from megalodon_jax.validation import MOST_TOKENS
from reference.dropout import DROPOUT_MODES, DropoutMode

InitMode = Literal["gaussian", "xavier", "he", "bert", "kaiming", "none"]
GemmBackend = Literal["default", "fused", "mxfp8", "nvfp4"]
Variant = Literal["hf", "original"]  # megalodon-hf, or the CUDA release

_DTYPES = ("param_dtype", "compute_dtype", "accum_dtype", "softmax_dtype")
_SIZES = (
    "vocab_size", "model_dim", "num_layers", "num_heads", "z_dim", "value_dim", "ffn_hidden_dim", "cema_ndim",
    "chunk_size", "norm_num_groups",
)  # fmt: skip
_FLAGS = ("cache_unbounded", "swiglu", "rescale_nffn", "scale_emb", "norm_affine", "use_checkpoint", "scan_layers")
_NUMBERS = ("norm_eps", "dropout", "attention_dropout", "hidden_dropout")
_OPTIONAL = ("max_cache_len", "pad_token_id", "bos_token_id", "eos_token_id")
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(_FLAGS, (bool,)),
    **dict.fromkeys(_NUMBERS, (float, int)),
    **dict.fromkeys(_OPTIONAL, (int, type(None))),
    "max_positions": (int,),
    "output_size": (int,),
    "init_mode": (str,),
    "rope_base": (float, int, type(None)),
    "share_emb": (bool, type(None)),
}


@dataclass(frozen=True)
class MegalodonConfig:
    """Sizes, switches and dtypes of a Megalodon model (defaults: megalodon-hf's 0.19 B model).

    `output_size=-1` means vocab_size. `share_emb` ties the output head to the embedding; None ties it when the widths
    agree. `pad_token_id` as an int makes that token embed to zero; use None for byte vocabularies.
    `max_cache_len` other than chunk_size, or `cache_unbounded`, makes cached attention a sliding window of
    `max_cache_len` keys. `scan_layers` runs the layers of an uncached call as one scanned block, so that compile time
    does not grow with depth. `remat` is what a block keeps for its backward (`megalodon_jax.remat`); None stands for
    "block" with `use_checkpoint` where `deterministic=False`, else for "none".

    `variant="original"` is the model of the CUDA release: TimestepNorm over all features of a group, interleaved rotary
    pairs, no bias in wh2, fc1, fc2 and fc3, gains of all norms stored minus one, a learned vector for `rescale_nffn`,
    an untied head unless `share_emb`, dropout of embeddings, float32 logits; `pad_token_id` embeds like any other.
    `gemm_backend="fused"` makes `pallas_kernels.fused_linear` of the linear layers in the blocks, with the activation
    in front of them and the residual behind, and `pallas_kernels.linear_cross_entropy` of a loss formed in chunks;
    "mxfp8" or "nvfp4" quantises the operands of the linear layers in the blocks, forward and backward, but nothing of
    the head, of the operations or of the sensitive parameters.
    `attention_dropout_mode="dropkey"` takes pairs out of the softmax instead of weights out of its result.

    Raises:
        ValueError: a field out of range; the message names the field and the rule.
    """

    vocab_size: int = 32000
    model_dim: int = 1024
    num_layers: int = 12
    num_heads: int = 1
    z_dim: int = 256
    value_dim: int = 2048
    ffn_hidden_dim: int = 2560
    cema_ndim: int = 16
    chunk_size: int = 2048
    max_cache_len: int | None = None
    cache_unbounded: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    rope_base: float | None = None
    swiglu: bool = False
    rescale_nffn: bool = False
    scale_emb: bool = False
    norm_affine: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    max_positions: int = 1_000_000
    init_mode: InitMode = "gaussian"
    use_checkpoint: bool = False
    output_size: int = -1
    param_dtype: Any = jnp.float32
    compute_dtype: Any = jnp.float32
    accum_dtype: Any = jnp.float32
    softmax_dtype: Any = jnp.float32
    gemm_backend: GemmBackend = "default"
    share_emb: bool | None = None
    variant: Variant = "hf"
    scan_layers: bool = False
    attention_dropout_mode: DropoutMode = "post_softmax"
    remat: Remat | None = None

    def __post_init__(self):
        for name in _SIZES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < (0 if name == "num_layers" else 1):
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                expected = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
                raise ValueError(f"{name} must be {expected}, got {value!r}")
        self._require(
            self.rope_base is None or 0 < self.rope_base < math.inf,
            "rope_base must be positive and finite, got {rope_base}",
        )
        self._require(self.z_dim % self.num_heads == 0, "z_dim {z_dim} must be divisible by num_heads {num_heads}")
        self._require(
            self.value_dim % self.num_heads == 0, "value_dim {value_dim} must be divisible by num_heads {num_heads}"
        )
        self._require(
            self.model_dim % self.norm_num_groups == 0,
            "model_dim {model_dim} must be divisible by norm_num_groups {norm_num_groups}",
        )
        self._require(0 < self.norm_eps < math.inf, "norm_eps must be positive and finite, got {norm_eps}")
        for name in ("dropout", "attention_dropout", "hidden_dropout"):
            self._require(0.0 <= getattr(self, name) <= 1.0, f"{name} must be in [0, 1], got {{{name}}}")
        if self.max_cache_len is not None:
            self._require(self.max_cache_len > 0, "max_cache_len must be positive, got {max_cache_len}")
            self._require(
                self.max_cache_len >= self.chunk_size,
                "max_cache_len {max_cache_len} must be at least chunk_size {chunk_size}",
            )
        for name in _DTYPES:
            object.__setattr__(self, name, _floating_dtype(name, getattr(self, name)))
        self._require(
            self.compute_dtype in (jnp.float32, jnp.bfloat16),
            "compute_dtype must be float32 or bfloat16, got {compute_dtype}",
        )
        self._require(
            self.gemm_backend in get_args(GemmBackend),
            "gemm_backend must be 'default', 'fused', 'mxfp8' or 'nvfp4', got {gemm_backend!r}",
        )
        self._require(
            self.gemm_backend != "fused" or self.param_dtype in (jnp.float32, jnp.bfloat16),
            "param_dtype must be float32 or bfloat16 where gemm_backend is 'fused', got {param_dtype}; "
            "'default' takes any",
        )
        self._require(
            jnp.finfo(self.accum_dtype).bits >= jnp.finfo(self.compute_dtype).bits,
            "accum_dtype should be >= compute_dtype, got {accum_dtype} and {compute_dtype}",
        )
        self._require(self.output_size == -1 or self.output_size > 0, "output_size must be positive or -1")
        self._require(
            not self.share_emb or self.effective_output_size == self.vocab_size,
            "share_emb needs output_size {output_size} equal to vocab_size {vocab_size} (or -1)",
        )
        self._require(self.variant in ("hf", "original"), "variant must be 'hf' or 'original', got {variant!r}")
        self._require(
            self.remat is None or self.remat in POLICIES,
            "remat must be None, 'none', 'kernels' or 'block', got {remat!r}",
        )
        self._require(
            self.attention_dropout_mode in DROPOUT_MODES,
            "attention_dropout_mode must be 'post_softmax' or 'dropkey', got {attention_dropout_mode!r}",
        )

    def _require(self, condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(message.format(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}))

    @property
    def head_dim(self) -> int:
        """Query/key width of one head."""
        return self.z_dim // self.num_heads

    @property
    def value_head_dim(self) -> int:
        """Value width of one head."""
        return self.value_dim // self.num_heads

    @property
    def effective_rope_base(self) -> float:
        """rope_base, 10000 if None."""
        return 10000.0 if self.rope_base is None else self.rope_base

    def remat_policy(self, deterministic: bool) -> Remat:
        """What a block keeps for its backward."""
        if self.remat is not None:
            return self.remat
        return "block" if self.use_checkpoint and not deterministic else "none"

    @property
    def effective_max_cache_len(self) -> int:
        """Slots of the key/value cache: max_cache_len, chunk_size if None."""
        return self.chunk_size if self.max_cache_len is None else self.max_cache_len

    @property
    def max_stream_len(self) -> int:
        """Tokens that a stream can have: counters are int32."""
        return MOST_TOKENS

    @property
    def effective_output_size(self) -> int:
        """Width of the logits."""
        return self.vocab_size if self.output_size == -1 else self.output_size

    @property
    def tied(self) -> bool:
        """Does the output head use the embedding's weight?"""
        if self.share_emb is None:
            return self.variant == "hf" and self.effective_output_size == self.vocab_size
        return self.share_emb

    def parameter_count_breakdown(self) -> dict[str, int]:
        """How many parameters each part of the model has, and the total; nothing is allocated."""
        return parameter_counts(self)

    @classmethod
    def from_7b(cls) -> "MegalodonConfig":
        """Sizes of megalodon-hf's 7B preset."""
        return cls(
            model_dim=4096, num_layers=32, num_heads=4, z_dim=1024, value_dim=8192, ffn_hidden_dim=11264,
            chunk_size=4096, norm_num_groups=64, rope_base=100000.0, swiglu=True,
        )  # fmt: skip

    def to_json(self) -> str:
        """The config as a JSON object, one key per field; dtypes by name."""
        fields = dataclasses.asdict(self)
        return json.dumps({k: jnp.dtype(v).name if k in _DTYPES else v for k, v in fields.items()}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "MegalodonConfig":
        """The config written by `to_json`; fields left out take their defaults.

        Raises:
            ValueError: not a JSON object, an unknown key, or a field out of range.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"config is not valid JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"config must be a JSON object, got {type(fields).__name__}")
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ValueError(f"unknown config key {', '.join(unknown)}; the keys are {', '.join(sorted(known))}")
        return cls(**fields)


def _floating_dtype(name: str, value) -> jnp.dtype:
    try:
        if value is None:
            raise TypeError
        dtype = jnp.dtype(value)
    except TypeError as error:
        raise ValueError(f"{name} must be a floating dtype, got {value!r}") from error
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be a floating dtype, got {dtype.name}")
    if dtype == jnp.float16:
        raise ValueError(f"{name} must not be float16: the EMA and the statistics overflow; use bfloat16")
    return dtype
