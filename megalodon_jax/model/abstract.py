"""The model of a config without its arrays."""

import equinox as eqx
import jax

from megalodon_jax.config import MegalodonConfig
from megalodon_jax.model.causal_lm import MegalodonForCausalLM
from megalodon_jax.parameters import named_parameters


def abstract_model(config: MegalodonConfig) -> tuple[MegalodonForCausalLM, dict[str, jax.ShapeDtypeStruct]]:
    """The model with shapes for arrays, and those shapes by parameter name; nothing is initialised."""

    def build(key):
        model = MegalodonForCausalLM(config, key=key)
        return model, list(named_parameters(model).items())  # a dict would come back sorted by name

    model, shapes = eqx.filter_eval_shape(build, jax.random.key(0))
    return model, dict(shapes)
