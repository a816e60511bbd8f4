"""What the baselines have in common: head and loss, called as those of `MegalodonForCausalLM` are.

logits = hidden @ weight.T, where weight is the embedding when tied
"""

from typing import Any, Generic, Literal, overload

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32

from megalodon_jax import loss as losses
from megalodon_jax.baselines.backbone import Backbone
from megalodon_jax.baselines.configs import Config
from megalodon_jax.fused_loss import weighted_loss
from megalodon_jax.ops import matmul_3d_weight
from megalodon_jax.types import ModelCache
from megalodon_jax.validation import check_ids, check_mask, require_in_range
from reference.segments import valid_tokens


class CausalLM(eqx.Module, Generic[Config]):
    """Language model: a backbone, and an output head that is the embedding or a layer of its own."""

    model: Backbone
    lm_head: eqx.nn.Linear | None
    config: Config = eqx.field(static=True)

    def __call__(
        self,
        input_ids: Int[Array, "B L"],
        attention_mask: Bool[Array, "B L"] | None = None,
        cache: ModelCache | None = None,
        return_cache: bool = False,
        deterministic: bool = True,
        key=None,
        *,
        segment_ids: Int[Array, "B L"] | None = None,
        checks: bool = False,
    ) -> tuple[Float[Array, "B L V"], ModelCache | None]:
        """Logits [B, L, V] in compute_dtype, and the new cache; arguments and errors as in `Backbone`."""
        hidden, cache = self.model(
            input_ids, attention_mask, cache, return_cache, deterministic, key, segment_ids=segment_ids, checks=checks
        )
        return self.head(hidden), cache

    def head(self, hidden: Float[Array, "*L D"]) -> Float[Array, "*L V"]:
        """Logits of hidden states, in compute_dtype."""
        return matmul_3d_weight(hidden, self._head_weight(), self.config.compute_dtype, jnp.float32)

    def _head_weight(self) -> Float[Array, "V D"]:
        return self.model.embed.weight if self.lm_head is None else self.lm_head.weight

    @overload
    def compute_loss(
        self,
        input_ids: Array,
        labels: Array,
        attention_mask: Array | None = None,
        ignore_index: int = -100,
        deterministic: bool = True,
        key: Any = None,
        *,
        segment_ids: Array | None = None,
        reduction: losses.Reduction = "mean",
        return_valid_count: Literal[False] = False,
        shift: bool = True,
        checks: bool = False,
    ) -> Array: ...
    @overload
    def compute_loss(
        self,
        input_ids: Array,
        labels: Array,
        attention_mask: Array | None = None,
        ignore_index: int = -100,
        deterministic: bool = True,
        key: Any = None,
        *,
        segment_ids: Array | None = None,
        reduction: losses.Reduction = "mean",
        return_valid_count: Literal[True],
        shift: bool = True,
        checks: bool = False,
    ) -> tuple[Array, Array]: ...
    def compute_loss(
        self,
        input_ids: Int[Array, "B L"],
        labels: Int[Array, "B L"],
        attention_mask: Bool[Array, "B L"] | None = None,
        ignore_index: int = -100,
        deterministic: bool = True,
        key: Any = None,
        *,
        segment_ids: Int[Array, "B L"] | None = None,
        reduction: losses.Reduction = "mean",
        return_valid_count: bool = False,
        shift: bool = True,
        checks: bool = False,
    ) -> Float[Array, "..."] | tuple[Float[Array, "..."], Int32[Array, ""]]:
        """Next-token cross-entropy in float32; `labels` are the ids themselves, the shift happens here.

        With `shift=False` labels[t] is the target of position t already.

        Where all logits would be more than `loss.LARGEST_WHOLE` they are formed for `loss.CHUNK` tokens at a time, and
        "mean" and "sum" then differentiate once and in reverse.

        Args:
            input_ids: as in the call.
            labels: targets, same shape as input_ids; position t is predicted from position t-1 (`shift=False`: from t).
            attention_mask: targets at masked positions do not count (`shift=False`: targets of masked positions).
            ignore_index: targets of this value do not count.
            deterministic: False turns dropout on.
            key: PRNG key for dropout.
            segment_ids: packed documents; targets that start a document, or are padding, do not count (`shift=False`:
                those of padding; at the end of a document give the label that ends it, or ignore_index).
            reduction: "mean" over the targets that count (0 if there is none), "sum", or "none": [B, L-1], [B, L]
                without shift, with zeros where a target does not count.
            return_valid_count: also return how many targets count.
            shift: are `labels` the input ids themselves?
            checks: as in the call.

        Raises:
            ValueError: as in the call; labels of another shape, a label that counts out of range, unknown reduction.
            TypeError: labels not integer.
        """
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        check_ids("input_ids", input_ids)
        check_ids("labels", labels, like=input_ids)
        check_mask(attention_mask, input_ids)
        if segment_ids is not None:
            check_ids("segment_ids", segment_ids, like=input_ids)
        targets, valid = _targets(labels.astype(jnp.int32), ignore_index, attention_mask, segment_ids, shift)
        vocabulary = self.config.vocab_size
        targets = require_in_range("labels", jnp.where(valid, targets, 0), vocabulary, checks)
        hidden, _ = self.model(
            input_ids, attention_mask, None, False, deterministic, key, segment_ids=segment_ids, checks=checks
        )
        chunk = losses.chunk_rows(targets.size, vocabulary, None)
        if chunk is not None and reduction != "none":
            factors = losses.loss_factors(valid, reduction)
            loss = jnp.asarray(weighted_loss(hidden, self._head_weight(), targets, factors, chunk, jnp.float32))
        else:
            if chunk is None:
                each = losses.token_losses(self.head(hidden), targets, jnp.float32)
            else:
                each = losses.chunked_token_losses(self.head, hidden, targets, chunk, jnp.float32)
            loss = losses.reduce_losses(each, valid, reduction)
            loss = loss[:, :-1] if reduction == "none" and shift else loss
        return (loss, jnp.sum(valid, dtype=jnp.int32)) if return_valid_count else loss


def _targets(
    labels: Int[Array, "B L"], ignore_index: int, attention_mask, segment_ids, shift: bool
) -> tuple[Int[Array, "B L"], Bool[Array, "B L"]]:
    """The target of every position, and which count; with `shift` the last has none."""
    if shift:
        targets = jnp.roll(labels, -1, axis=1)
        valid = losses.valid_targets(targets[:, :-1], ignore_index, attention_mask, segment_ids)
        return targets, jnp.pad(valid, ((0, 0), (0, 1)))
    valid, there = labels != ignore_index, valid_tokens(attention_mask, segment_ids)
    return labels, valid if there is None else valid & there
