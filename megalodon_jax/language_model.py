"""What decoding and generation ask of a model: `MegalodonForCausalLM` has it, and so have the baselines."""

from typing import Any, Protocol, runtime_checkable

from jax import Array

from megalodon_jax.types import ModelCache


@runtime_checkable
class LanguageConfig(Protocol):
    """The config of such a model."""

    @property
    def vocab_size(self) -> int:
        """Tokens are in [0, vocab_size)."""
        ...

    @property
    def effective_output_size(self) -> int:
        """Width of the logits."""
        ...

    @property
    def max_stream_len(self) -> int:
        """Tokens that a stream can have."""
        ...

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text."""
        ...

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends one."""
        ...

    @property
    def compute_dtype(self) -> Any:
        """Dtype of activations."""
        ...


@runtime_checkable
class Streams(Protocol):
    """A model, or one without its head: [B, L] ids to [B, L, features] and the new cache."""

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        cache: ModelCache | None = None,
        return_cache: bool = False,
        *,
        checks: bool = False,
    ) -> tuple[Array, ModelCache | None]: ...


@runtime_checkable
class LanguageModel(Streams, Protocol):
    """A model whose state is a `ModelCache`."""

    @property
    def config(self) -> LanguageConfig:
        """Sizes and dtypes."""
        ...

    @property
    def model(self) -> Streams:
        """The model without its head."""
        ...

    def head(self, hidden: Array) -> Array:
        """Logits of hidden states."""
        ...
