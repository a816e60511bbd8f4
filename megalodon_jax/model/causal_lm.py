"""Language model: logits = hidden @ weight.T, where weight is the embedding when tied; and its loss."""

from collections.abc import Callable
from typing import Any, Literal, overload

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32

from megalodon_jax import loss as losses
from megalodon_jax.config import MegalodonConfig
from megalodon_jax.fused_loss import weighted_loss
from megalodon_jax.model.backbone import MegalodonModel
from megalodon_jax.ops import matmul_3d_weight
from megalodon_jax.types import ModelCache
from megalodon_jax.utils import get_initializer, vocabulary_mode
from megalodon_jax.validation import check_ids, require_in_range


class MegalodonForCausalLM(eqx.Module):
    """Language model: `MegalodonModel` and an output head, tied to the embedding where `config.tied`."""

    model: MegalodonModel
    lm_head: eqx.nn.Linear | None
    tied: bool = eqx.field(static=True)
    config: MegalodonConfig = eqx.field(static=True)

    def __init__(self, config: MegalodonConfig, *, key):
        self.config, self.tied = config, config.tied
        if self.tied:
            self.model, self.lm_head = MegalodonModel(config, key=key), None
            return
        model_key, head_key, init_key = jax.random.split(key, 3)
        self.model = MegalodonModel(config, key=model_key)
        width, dtype = config.effective_output_size, config.param_dtype
        head = eqx.nn.Linear(config.model_dim, width, use_bias=False, dtype=dtype, key=head_key)
        if config.init_mode != "none":
            weight = get_initializer(vocabulary_mode(config.init_mode))(init_key, head.weight.shape, dtype)
            head = eqx.tree_at(lambda m: m.weight, head, weight)
        self.lm_head = head

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
        position_ids: Int[Array, "B L"] | None = None,
        detach_cache: bool = True,
        checks: bool = False,
    ) -> tuple[Float[Array, "B L V"], ModelCache | None]:
        """Logits [B, L, output_size] in compute_dtype, and the new cache; arguments as in `MegalodonModel`."""
        hidden, new_cache = self.model(
            input_ids, attention_mask, cache, return_cache, deterministic, key,
            segment_ids=segment_ids, position_ids=position_ids, detach_cache=detach_cache, checks=checks,
        )  # fmt: skip
        return self.head(hidden), new_cache

    def head(self, hidden: Float[Array, "*L D"]) -> Float[Array, "*L V"]:
        """Logits of hidden states, in compute_dtype."""
        return self._head()(hidden)

    def _head(self) -> Callable[[Array], Array]:
        """hidden [..., D] -> logits [..., V]; the weight is cast here, once, however often the result is called."""
        config = self.config
        weight = self._head_weight().astype(config.compute_dtype)
        widen = jnp.float32 if config.variant == "original" else config.compute_dtype
        return lambda hidden: matmul_3d_weight(hidden, weight, config.compute_dtype, config.accum_dtype).astype(widen)

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
        key=None,
        *,
        segment_ids: Array | None = None,
        position_ids: Array | None = None,
        reduction: losses.Reduction = "mean",
        return_valid_count: Literal[False] = False,
        loss_chunk_size: int | None = None,
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
        key=None,
        *,
        segment_ids: Array | None = None,
        position_ids: Array | None = None,
        reduction: losses.Reduction = "mean",
        return_valid_count: Literal[True],
        loss_chunk_size: int | None = None,
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
        key=None,
        *,
        segment_ids: Int[Array, "B L"] | None = None,
        position_ids: Int[Array, "B L"] | None = None,
        reduction: losses.Reduction = "mean",
        return_valid_count: bool = False,
        loss_chunk_size: int | None = None,
        shift: bool = True,
        checks: bool = False,
    ) -> Float[Array, "..."] | tuple[Float[Array, "..."], Int32[Array, ""]]:
        """Next-token cross-entropy in softmax_dtype; `labels` are the ids themselves, the shift happens here.

        With `shift=False` labels[t] is the target of position t already: of windows of L+1 tokens the first L go in and
        the last L are predicted. What does not count is then for the labels to say.

        Args:
            input_ids: as in the call.
            labels: targets, same shape as input_ids; position t is predicted from position t-1 (`shift=False`: from t).
            attention_mask: targets at masked positions do not count (`shift=False`: targets of masked positions).
            ignore_index: targets of this value do not count.
            deterministic: False turns dropout on.
            key: PRNG key for dropout.
            segment_ids: packed documents; targets that start a document, or are padding, do not count (`shift=False`:
                those of padding; at the end of a document give the label that ends it, or ignore_index).
            position_ids: as in the call.
            reduction: "mean" over the targets that count (0 if there is none), "sum", or "none": [B, L-1], [B, L]
                without shift, with zeros where a target does not count.
            return_valid_count: also return how many targets count.
            loss_chunk_size: form logits for at most so many tokens at a time, never [B, L, V]; "mean" and "sum" form
                the gradient with them, "none" forms them again in the backward. None: all logits at once up to
                `loss.LARGEST_WHOLE` of them, chunks of `loss.CHUNK` (fused `loss.FUSED_CHUNK`) tokens beyond. Forward
                mode and second derivatives need all at once, or "none", float32 compute, and no kernels.
            shift: are `labels` the input ids themselves?
            checks: as in the call.

        Raises:
            ValueError: as in the call; labels of another shape, a label that counts out of range, unknown reduction,
                loss_chunk_size not positive.
            TypeError: labels not integer.
        """
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        if loss_chunk_size is not None and (not isinstance(loss_chunk_size, int) or loss_chunk_size <= 0):
            raise ValueError(f"loss_chunk_size must be a positive int or None, got {loss_chunk_size!r}")
        check_ids("input_ids", input_ids)
        check_ids("labels", labels, like=input_ids)
        hidden, _ = self.model(
            input_ids, attention_mask, None, False, deterministic, key,
            segment_ids=segment_ids, position_ids=position_ids, checks=checks,
        )  # fmt: skip
        targets = (labels[:, 1:] if shift else labels).astype(jnp.int32)
        valid = losses.valid_targets(targets, ignore_index, attention_mask, segment_ids, shift)
        targets = require_in_range("labels", jnp.where(valid, targets, 0), self.config.effective_output_size, checks)
        dtype: Any = self.config.softmax_dtype
        fused = self.config.gemm_backend == "fused" and reduction != "none"
        chunk = losses.chunk_rows(targets.size, self.config.effective_output_size, loss_chunk_size, fused)
        if chunk is None:
            per_token = losses.token_losses(self._head()(hidden[:, :-1] if shift else hidden), targets, dtype)
            loss = losses.reduce_losses(per_token, valid, reduction)
        elif reduction == "none":
            hidden = hidden[:, :-1] if shift else hidden
            per_token = losses.chunked_token_losses(self._head(), hidden, targets, chunk, dtype)
            loss = losses.reduce_losses(per_token, valid, reduction)
        else:
            factors = losses.loss_factors(valid, reduction)
            if shift:  # the last token predicts nothing: a factor of 0 costs less than a copy of `hidden` without it
                targets, factors = (jnp.pad(a, ((0, 0), (0, 1))) for a in (targets, factors))
            total = weighted_loss(hidden, self._head_weight(), targets, factors, chunk, self.config.accum_dtype, fused)
            loss = jnp.asarray(total).astype(dtype)
        return (loss, jnp.sum(valid, dtype=jnp.int32)) if return_valid_count else loss
