"""What a whole training step compiles to, kernels on and off, without a GPU: `pytest -m all_targets`."""

import pytest

from bench import inspect_model
from bench.inspect import tools
from pallas_kernels import use_implementation

pytestmark = [
    pytest.mark.skipif(tools.missing() is not None, reason=str(tools.missing())),
    pytest.mark.all_targets,
]


@pytest.fixture(scope="module")
def steps():
    found = {}
    for name, chosen in inspect_model.IMPLEMENTATIONS.items():
        with use_implementation(**chosen):
            found[name] = inspect_model.step_figures("sm_90")
    return found


def test_every_kernel_saves_bytes_memory_and_launches(steps):
    kernels, without_attention, none = steps.values()
    for figure in ("bytes_moved", "temporary_bytes", "launches"):
        assert getattr(kernels, figure) < getattr(without_attention, figure) < getattr(none, figure)
    assert without_attention.bytes_moved <= 78e9
    assert without_attention.temporary_bytes <= 10.3e9
    assert without_attention.launches <= 1530


def test_the_kernels_of_every_layer_are_there(steps):
    kernels, _, none = (step.launches_by_kind for step in steps.values())
    for name in ("complex_ema_forward", "complex_ema_backward", "chunked_attention_dv", "normalized_rotary_forward"):
        assert kernels[name] == 8
    assert kernels["timestep_norm_forward"] == 9
    assert set(none) == {"fusion", "gemm", "copy"}
