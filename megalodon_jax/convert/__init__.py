"""Weights to and from other programs. torch is needed for its tensors and pickles only.

state_dict, shards, pretrained     megalodon-hf: names in memory; files, one or several
original*                          the CUDA release: names, reading, writing
config_files, consolidation        config.json of any of three formats; what the release has beside it
checkpoints                        whole checkpoints, from any of three formats to any
loading, sizes                     what is given compared with the config, then read
tensors, pickles                   what torch is needed for
"""

from megalodon_jax.convert.config_files import read_config
from megalodon_jax.convert.original import load_original_checkpoint
from megalodon_jax.convert.original_export import save_original_checkpoint
from megalodon_jax.convert.pretrained import load_from_pretrained, save_safetensors
from megalodon_jax.convert.state_dict import StateDict, convert_jax_to_torch, load_weights_from_torch

__all__ = [
    "StateDict",
    "convert_jax_to_torch",
    "load_from_pretrained",
    "load_original_checkpoint",
    "load_weights_from_torch",
    "read_config",
    "save_original_checkpoint",
    "save_safetensors",
]
