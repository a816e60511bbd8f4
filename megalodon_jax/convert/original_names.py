"""Names and layout of the tensors in a checkpoint of the CUDA release.

    here                                                          there
    model.embed.weight                                            embed.weight
    model.layers.{i}.attn.rmsnorm.gamma                           layers.{i}.mega.rmsnorm.weight
    model.layers.{i}.attn.cema.gamma_real, gamma_imag [D, N]      layers.{i}.mega.cema.gamma [D, N, 2]
    model.layers.{i}.attn.cema.omega [D]                          layers.{i}.mega.cema.omega [D, 1]
    model.layers.{i}.attn.<the rest>                              layers.{i}.mega.<the rest>
    model.layers.{i}.ffn.rescale                                  layers.{i}.nffn.alpha
    model.layers.{i}.ffn.<the rest>                               layers.{i}.nffn.<the rest>
    model.norm.<...>                                              output.final_norm.<...>
    lm_head.weight                                                output.output.weight
    model.layers.0.attn.inner.rope.inv_freq                       rope.freqs
    none: 0, and without weight as long as prior_count is 0       {norm over time}.prior_count|prior_mean|prior_logv

A model trained on several GPUs lies in several files; tensors are cut along the axis of `cut_axis`, or whole in each.
"""

import re

import numpy as np

from megalodon_jax.convert.sizes import ROTARY

PRIORS = ("prior_count", "prior_mean", "prior_logv")
_PRIOR = re.compile(rf"(layers\.\d+\.mega\.timenorm|output\.final_norm)\.({'|'.join(PRIORS)})")
_THERE = {"rmsnorm.gamma": "rmsnorm.weight", "nffn.rescale": "nffn.alpha", "lm_head.": "output.output."}
_ALONG_1 = ("embed.weight", "output.output.weight", "wh2.weight", "fc2.weight", "mega.gamma", "mega.beta")
_WHOLE = ("rmsnorm.weight", "nffn.norm.weight", "nffn.norm.bias", "nffn.alpha", "rope.freqs", "prior_count")


def there(name: str) -> str:
    """The release's name of one of our tensors; two of ours are parts of one complex tensor there."""
    if name == ROTARY:
        return "rope.freqs"
    name = re.sub(r"^norm\.", "output.final_norm.", name.removeprefix("model."))
    name = name.replace(".attn.", ".mega.").replace(".ffn.", ".nffn.")
    for ours, theirs in _THERE.items():
        name = name.replace(ours, theirs)
    return re.sub(r"cema\.gamma_(real|imag)$", "cema.gamma", name)


def here(name: str) -> list[str]:
    """Our names of a tensor of the release: none if it is no name there, two for complex numbers."""
    if name == "rope.freqs":
        return [ROTARY]
    ours = re.sub(r"^output\.final_norm\.", "norm.", name).replace(".mega.", ".attn.").replace(".nffn.", ".ffn.")
    for mine, theirs in _THERE.items():
        ours = ours.replace(theirs.replace("nffn", "ffn"), mine.replace("nffn", "ffn"))
    ours = ours if ours.startswith("lm_head.") else f"model.{ours}"
    found = (
        [] if name.startswith("model.") else [f"{ours}_real", f"{ours}_imag"] if ours.endswith("cema.gamma") else [ours]
    )
    return found if all(there(one) == name for one in found) else []


def is_prior(name: str) -> bool:
    """Is this one of the statistics that a norm over time begins with?"""
    return _PRIOR.fullmatch(name) is not None


def cut_axis(name: str) -> int | None:
    """The axis along which model parallelism cuts a tensor of the release; None: it does not."""
    if name.endswith(_WHOLE):
        return None
    return 1 if name.endswith(_ALONG_1) else 0


def last_axis(name: str) -> int | None:
    """What the last axis of a tensor of the release has to be, where ours has no such axis."""
    return 2 if name.endswith("cema.gamma") else 1 if name.endswith("cema.omega") else None


def part(here: str, value: np.ndarray) -> np.ndarray:
    """Our tensor out of the release's: of complex numbers the real or imaginary part; omega without its last axis."""
    if here.endswith(("cema.gamma_real", "cema.gamma_imag")):
        return value[..., 0 if here.endswith("real") else 1]
    return value[..., 0] if here.endswith("cema.omega") else value
