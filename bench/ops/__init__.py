"""What parity and the static figures need to know of an op, one module for each, found by the type of a spec.

A module has

    NAME                                    of the op
    describe(spec)                          its sizes and options in words
    inputs(spec, seed)                      random arrays, the cotangents included
    values(spec, implementation)            function of them: every output and gradient by name
    truth(spec, arrays)                     the same from the float64 oracle
    program(spec, mode, implementation)     the program that is compiled and inspected, and its abstract argument
    baselines(spec)                         further implementations that `program` knows, the usual formulations
    launches(spec, gpu)                     its kernels with their tiles, on an architecture
    walk(spec, mode, kernel)                how a compiled kernel of that program walks over the sequence
    alike(call)                             programs of its grid that do all there is to do, with how often they occur;
                                            None where values decide what they do
    least_multiply_adds(spec, mode)         of the matrix products that the results need; 0 for an op without
    cached(spec)                            shapes of small arrays that many programs of a kernel read
    KERNELS                                 names of those with tiles of their own, forward first
"""

from collections.abc import Iterable, Mapping
from types import ModuleType

from bench.ops import attention, cross_entropy, ema, features, linear, norm, rotary
from pallas_kernels.chunked_attention import specs as attention_specs
from pallas_kernels.chunked_attention.specs import Spec as AttentionSpec
from pallas_kernels.complex_ema import specs as ema_specs
from pallas_kernels.complex_ema.specs import Spec as EmaSpec
from pallas_kernels.feature_norm import specs as feature_specs
from pallas_kernels.feature_norm.specs import Spec as FeatureSpec
from pallas_kernels.fused_linear import specs as linear_specs
from pallas_kernels.fused_linear.specs import Spec as LinearSpec
from pallas_kernels.linear_cross_entropy import specs as cross_entropy_specs
from pallas_kernels.linear_cross_entropy.specs import Spec as CrossEntropySpec
from pallas_kernels.normalized_rotary import specs as rotary_specs
from pallas_kernels.normalized_rotary.specs import Spec as RotarySpec
from pallas_kernels.timestep_norm import specs as norm_specs
from pallas_kernels.timestep_norm.specs import Spec as NormSpec

Spec = NormSpec | EmaSpec | AttentionSpec | RotarySpec | LinearSpec | FeatureSpec | CrossEntropySpec
Titled = dict[str, Spec]


def of(spec: Spec) -> ModuleType:
    """The module of the op that a spec is of."""
    modules = {
        NormSpec: norm, EmaSpec: ema, AttentionSpec: attention, RotarySpec: rotary, LinearSpec: linear,
        FeatureSpec: features, CrossEntropySpec: cross_entropy,
    }  # fmt: skip
    return modules[type(spec)]


def _titled(specs: Iterable[Spec]) -> Titled:
    return {f"{of(spec).NAME}: {spec.name}": spec for spec in specs}


# Of every op, by "op: name".
PRESETS = _titled(
    (
        *norm_specs.PRESETS,
        *ema_specs.PRESETS,
        *attention_specs.PRESETS,
        *rotary_specs.PRESETS,
        *linear_specs.PRESETS,
        *feature_specs.PRESETS,
        *cross_entropy_specs.PRESETS,
    )
)
PARITY = _titled(
    (
        *(*norm_specs.PARITY, *norm_specs.LONG),
        *(*ema_specs.PARITY, *ema_specs.LONG),
        *attention_specs.PARITY,
        *rotary_specs.PARITY,
        *linear_specs.PARITY,
        *feature_specs.PARITY,
        *cross_entropy_specs.PARITY,
    )
)
SHORTFALLS = _titled(ema_specs.SHORTFALLS)  # break the policy, by how much is known; shown when named


def find(known: Mapping[str, Spec], name: str) -> Titled:
    """The spec "op: name"; for a name alone, that of every op that has it; for an op alone, all of its specs."""
    return {title: spec for title, spec in known.items() if name in (title, spec.name, of(spec).NAME)}


def is_cotangent(name: str) -> bool:
    """Is the array of that name among a spec's the cotangent of an output?"""
    return name.startswith("d")
