"""What whole models compile to: source lines and targets by hand; without a GPU, `pytest -m all_targets`."""

from dataclasses import replace

import jax
import pytest

from bench import inspect_compile, inspect_model, model_report, model_targets
from bench.inspect import tools
from bench.inspect.frames import Frame, stacks
from bench.model_programs import MODEL_S, PROGRAMS, Shape, large, program
from tests import models

VARIANTS = ("kernels", "fused matmuls", "XLA")

needs_tools = pytest.mark.skipif(tools.missing() is not None, reason=str(tools.missing()))

TEXT = """HloModule lines, is_scheduled=true

FileNames
1 "/home/me/train.py"
2 "/home/me/megalodon_jax/layers/attention.py"

FunctionNames
1 "<module>"
2 "MegalodonAttention.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=0 end_column=9}
2 {file_name_id=2 function_name_id=2 line=148 end_line=148 column=4 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%double (a: f32[8]) -> (f32[8], f32[8]) {
  %a = f32[8]{0} parameter(0)
  %twice = f32[8]{0} add(%a, %a), metadata={op_name="jit(f)/add" stack_frame_id=2}
  ROOT %both = (f32[8]{0}, f32[8]{0}) tuple(%a, %twice)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %fused = (f32[8]{0}, f32[8]{0}) fusion(%x), kind=kLoop, calls=%double
  %second = f32[8]{0} get-tuple-element(%fused), index=1
  ROOT %out = f32[8]{0} negate(%second), metadata={op_name="jit(f)/neg" stack_frame_id=1}
}
"""


def test_lines_of_instructions():
    outer = Frame("/home/me/train.py", 7, "<module>")
    inner = Frame("/home/me/megalodon_jax/layers/attention.py", 148, "MegalodonAttention.__call__")
    found = stacks(TEXT)
    assert found["out"] == (outer,)
    assert found["fused"] == (inner, outer)  # of what its root returns
    assert found["x"] == ()


def test_targets_can_be_missed():
    one = {"moved": 9.5, "temporary": 3.6, "launches": 150, "started": 650}
    good = dict.fromkeys(model_targets.TARGETS, one)
    programs = {"forward": good, "training": good, "prefill": good}
    assert all(verdict.met for verdict in model_targets.verdicts(programs))
    for name, what in (("forward", "moved"), ("training", "temporary"), ("training", "launches"), ("prefill", "moved")):
        for variant in good:
            worse = programs | {name: good | {variant: good[variant] | {what: 1000.0}}}
            assert [verdict.met for verdict in model_targets.verdicts(worse)].count(False) == 1
    assert inspect_compile.verdict(10.0, 15.0).met
    assert not inspect_compile.verdict(10.0, 15.1).met


def test_shapes():
    assert (MODEL_S.config.vocab_size, MODEL_S.config.chunk_size, MODEL_S.config.value_dim) == (32000, 256, 2048)
    assert large("7B", 1).config.model_dim == 4096
    for name in PROGRAMS:
        function, arguments = program(name, Shape(models.config(), 2, 24))
        assert jax.eval_shape(function, *arguments)


@needs_tools
def test_a_tiny_model(monkeypatch, tmp_path):
    """Every table, and bytes by line that add up to all of them."""
    tiny = Shape(models.config(num_layers=1), 1, 16)
    monkeypatch.setenv("MEGALODON_INSPECT_CACHE", str(tmp_path))
    one = inspect_model.measure("forward", "kernels", "sm_90", tiny)
    assert sum(line.bytes for line in one.lines.values()) == one.bytes_moved
    assert sum(line.launches for line in one.lines.values()) == one.started
    assert any(place.startswith("layers/attention.py:") for place in one.lines)
    monkeypatch.setattr(inspect_model, "measure", lambda *_: one)
    printed = model_report.text({"versions": {}, "targets": [inspect_model._target("sm_90")]})
    assert printed.count("\ntarget ") == 13
    assert "a peer's library" in printed


@pytest.fixture(scope="module")
def found():
    return {
        name: {variant: inspect_model.measure(name, variant, "sm_90") for variant in VARIANTS}
        for name in ("forward", "training", "prefill", "decode")
    }


@needs_tools
@pytest.mark.all_targets
def test_every_target_is_met(found):
    for verdict in inspect_model.judge(found):
        assert verdict.met, verdict


@needs_tools
@pytest.mark.all_targets
def test_kernels_save_bytes_memory_and_launches(found):
    kernels, xla = (found["training"][variant] for variant in ("kernels", "XLA"))
    for figure in ("bytes_moved", "temporary_bytes", "launches", "started"):
        assert getattr(kernels, figure) < getattr(xla, figure)
    assert not xla.pallas_kernels


@needs_tools
@pytest.mark.all_targets
def test_the_kernels_of_every_layer_are_there(found):
    kernels = found["training"]["kernels"].pallas_kernels
    for name in ("complex_ema_forward", "complex_ema_backward", "chunked_attention_dv", "normalized_rotary_forward"):
        assert kernels[name] == 8
    assert kernels["timestep_norm_forward"] == 9


@needs_tools
@pytest.mark.all_targets
def test_a_state_costs_a_forward_little(found):
    for variant in model_targets.TARGETS:
        forward, prefill = (found[name][variant] for name in ("forward", "prefill"))
        assert prefill.launches <= forward.launches + 40  # most of those above 1.1 put keys and values into rings


@needs_tools
@pytest.mark.all_targets
def test_decoding_reads_weights_and_state_and_little_else(found):
    _, arguments = program("decode", MODEL_S)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments))
    for one in found["decode"].values():
        assert one.bytes_moved <= 1.1 * held
        assert one.launches <= 230


@needs_tools
@pytest.mark.all_targets
def test_scanned_layers_are_compiled_once():
    config = replace(MODEL_S.config, num_layers=5)
    launches = [
        inspect_model.measure("forward", "kernels", "sm_90", replace(MODEL_S, config=replace(config, scan_layers=scan)))
        for scan in (False, True)
    ]
    assert launches[1].launches < launches[0].launches
