"""The model.

block      attention half and feed-forward half
backbone   embedding, blocks and final norm
causal_lm  the language model: logits and loss
"""

from megalodon_jax.model.backbone import MegalodonModel
from megalodon_jax.model.block import MegalodonBlock
from megalodon_jax.model.causal_lm import MegalodonForCausalLM

__all__ = ["MegalodonBlock", "MegalodonForCausalLM", "MegalodonModel"]
