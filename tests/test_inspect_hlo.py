"""What is read from the compilers' output, by hand: the traffic, launches and intermediates of a program."""

import pytest

from bench.inspect import TARGETS, traffic
from bench.inspect.artefacts import Artefacts
from bench.inspect.program import Program

KIB = 1024

# A scan over the 8 rows of x (f32[8,64], 2048 bytes; a row is 256): carry += row, the carry before it is stacked.
SCAN = """HloModule scan, is_scheduled=true

%stack (a: f32[8,64], b: f32[64], i: s32[]) -> f32[8,64] {
  %a = f32[8,64]{1,0} parameter(0)
  %b = f32[64]{0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,64]{1,0} bitcast(%b)
  ROOT %dus = f32[8,64]{1,0} dynamic-update-slice(%a, %row, %i, %zero)
}

%add_row (c: f32[64], all: f32[8,64], j: s32[]) -> f32[64] {
  %c = f32[64]{0} parameter(0)
  %all = f32[8,64]{1,0} parameter(1)
  %j = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %ds = f32[1,64]{1,0} dynamic-slice(%all, %j, %zero.1), dynamic_slice_sizes={1,64}
  %flat = f32[64]{0} bitcast(%ds)
  ROOT %sum = f32[64]{0} add(%c, %flat)
}

%body (s: (s32[], f32[64], f32[8,64], /*index=3*/f32[8,64])) -> (s32[], f32[64], f32[8,64], f32[8,64]) {
  %s = (s32[], f32[64]{0}, f32[8,64]{1,0}, /*index=3*/f32[8,64]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%s), index=0
  %carry = f32[64]{0} get-tuple-element(%s), index=1
  %ys = f32[8,64]{1,0} get-tuple-element(%s), index=2
  %xs = f32[8,64]{1,0} get-tuple-element(%s), index=3
  %stacked = f32[8,64]{1,0} fusion(%ys, %carry, %n), kind=kLoop, calls=%stack
  %added = f32[64]{0} fusion(%carry, %xs, %n), kind=kLoop, calls=%add_row
  %one = s32[] constant(1)
  %next = s32[] add(%n, %one)
  ROOT %t = (s32[], f32[64]{0}, f32[8,64]{1,0}, f32[8,64]{1,0}) tuple(%next, %added, %stacked, %xs)
}

%cond (s.1: (s32[], f32[64], f32[8,64], f32[8,64])) -> pred[] {
  %s.1 = (s32[], f32[64]{0}, f32[8,64]{1,0}, f32[8,64]{1,0}) parameter(0)
  %n.1 = s32[] get-tuple-element(%s.1), index=0
  %limit = s32[] constant(8)
  ROOT %less = pred[] compare(%n.1, %limit), direction=LT
}

ENTRY %main (x: f32[8,64]) -> (f32[64], f32[8,64]) {
  %x = f32[8,64]{1,0} parameter(0), metadata={op_name="x (the input)"}
  %start = s32[] constant(0)
  %first = f32[64]{0} broadcast(%start), dimensions={}
  %empty = f32[8,64]{1,0} broadcast(%start), dimensions={}
  %init = (s32[], f32[64]{0}, f32[8,64]{1,0}, f32[8,64]{1,0}) tuple(%start, %first, %empty, %x)
  %loop = (s32[], f32[64]{0}, f32[8,64]{1,0}, f32[8,64]{1,0}) while(%init), condition=%cond, body=%bodyTRIPS
  %last = f32[64]{0} get-tuple-element(%loop), index=1
  %all_carries = f32[8,64]{1,0} get-tuple-element(%loop), index=2
  ROOT %out = (f32[64]{0}, f32[8,64]{1,0}) tuple(%last, %all_carries)
}
"""
KNOWN = SCAN.replace("TRIPS", ', backend_config={"known_trip_count":{"n":"8"}}')
UNKNOWN = SCAN.replace("TRIPS", "")
# Before the loop: broadcasts read 4 and write 256 + 2048. One trip: the stack reads the carry (256) and the index (4)
# and writes a row (256); the sum reads carry, one row and the index (516) and writes 256; the counter reads 8 (a
# constant counts where it is no part of a fusion) and writes 4; the condition reads 8 and writes 1.
BEFORE = (4 + 256) + (4 + 2048)
TRIP = (256 + 4 + 256) + (516 + 256) + (8 + 4) + (8 + 1)


def test_loops_count_their_trips_and_slices_their_size():
    found = traffic(KNOWN)
    assert found.bytes == BEFORE + 8 * TRIP
    assert found.launch_count == 2 + 8 * 4
    assert found.unknown_loops == ()


def test_an_unknown_trip_count_is_reported_and_can_be_given():
    once = traffic(UNKNOWN)
    assert once.unknown_loops == ("loop",)
    assert once.bytes == BEFORE + TRIP
    given = traffic(UNKNOWN, {"loop": 3})
    assert given.unknown_loops == ()
    assert given.bytes == BEFORE + 3 * TRIP
    with pytest.raises(
        ValueError, match="trip counts given for \\['lop'\\]; loops without a known count: \\['loop'\\]"
    ):
        traffic(UNKNOWN, {"lop": 3})
    with pytest.raises(ValueError, match="without a known count: none"):
        traffic(KNOWN, {"loop": 3})


ROWS = """HloModule rows, is_scheduled=true

%put (old: f32[], new: f32[]) -> f32[] {
  %old = f32[] parameter(0)
RESULT
}

%scattered (a: f32[8,64], i: s32[2,1], rows: f32[2,64]) -> f32[8,64] {
  %a = f32[8,64]{1,0} parameter(0)
  %i = s32[2,1]{1,0} parameter(1)
  %rows = f32[2,64]{1,0} parameter(2)
  ROOT %set = f32[8,64]{1,0} scatter(%a, %i, %rows), update_window_dims={1}, to_apply=%put
}

ENTRY %main (x: f32[8,64], index: s32[2,1], two: f32[2,64]) -> f32[8,64] {
  %x = f32[8,64]{1,0} parameter(0)
  %index = s32[2,1]{1,0} parameter(1)
  %two = f32[2,64]{1,0} parameter(2)
  ROOT %out = f32[8,64]{1,0} fusion(%x, %index, %two), kind=kInput, calls=%scattered
}
"""


def test_rows_that_are_overwritten_are_all_that_moves():
    """Rows of 512 bytes and indices of 8; a sum of old and new counts the whole buffer."""
    overwriting = traffic(ROWS.replace("RESULT", "  ROOT %new = f32[] parameter(1)"))
    assert overwriting.bytes == (512 + 8) + 512
    adding = traffic(ROWS.replace("RESULT", "  %new = f32[] parameter(1)\n  ROOT %sum = f32[] add(%old, %new)"))
    assert adding.bytes == (2048 + 512 + 8) + 2048


def test_returned_buffers_are_no_intermediates():
    assert traffic(KNOWN).largest.bytes == 4  # the counter; carries and stack are returned, updated in place
    dropped = KNOWN.replace("tuple(%last, %all_carries)", "tuple(%last, %x)")
    largest = traffic(dropped).largest
    assert (largest.bytes, largest.shape, largest.dtype) == (2048, (8, 64), "f32")


def _entry(*lines, called=""):
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m\n\n{called}\nENTRY %main (x: f32[1024]) -> f32[1024] {{\n{body}\n}}\n"


def test_of_a_conditional_the_larger_branch_counts():
    branches = """%small (a: f32[1024]) -> f32[1024] {
  ROOT %a = f32[1024]{0} parameter(0)
}

%large (b: f32[1024]) -> f32[1024] {
  %b = f32[1024]{0} parameter(0)
  ROOT %negated = f32[1024]{0} negate(%b)
}
"""
    text = _entry(
        "%x = f32[1024]{0} parameter(0)",
        "%p = s32[] constant(1)",
        "ROOT %c = f32[1024]{0} conditional(%p, %x, %x), branch_computations={%small, %large}",
        called=branches,
    )
    assert [(launch.name, launch.bytes) for launch in traffic(text).launches] == [("negated", 8192)]
    two = text.replace("branch_computations={%small, %large}", "true_computation=%large, false_computation=%small")
    assert traffic(two).bytes == 8192


def test_kinds_of_launches():
    ir = 'ir = "ML\\\\EFR(calls=%nothing", name = "row_norm", num_warps = 4 : i32'
    gemm = '{"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}'
    text = _entry(
        "%x = f32[1024]{0} parameter(0)",
        f'%p = f32[1024]{{0}} custom-call(%x), custom_call_target="__gpu$xla.gpu.triton", backend_config={{{ir}}}',
        '%l = (bf16[1024]{0}, s8[4096]{0}) custom-call(%p), custom_call_target="__cublas$gemm"',
        "%g = bf16[1024]{0} get-tuple-element(%l), index=0",
        f"ROOT %f = f32[1024]{{0}} fusion(%g), kind=kCustom, calls=%fused, backend_config={gemm}",
        called="%fused (q: bf16[1024]) -> f32[1024] {\n  %q = bf16[1024]{0} parameter(0)\n"
        "  ROOT %wide = f32[1024]{0} convert(%q)\n}\n",
    )
    found = traffic(text)
    assert [(launch.kind, launch.kernel) for launch in found.launches] == [
        ("pallas", "row_norm"),
        ("gemm", "__cublas$gemm"),
        ("gemm", "f"),
    ]
    # The workspace of the library call is neither traffic nor an intermediate of the program's own.
    assert [(launch.read, launch.written) for launch in found.launches] == [(4096, 4096), (4096, 2048), (2048, 4096)]


@pytest.mark.parametrize(
    ("dtype", "size"), [("pred", 1024), ("bf16", 2048), ("f8e4m3fn", 1024), ("c64", 8192), ("s4", 512), ("u64", 8192)]
)
def test_element_sizes(dtype, size):
    text = _entry(f"%x = {dtype}[1024]{{0:E(4)}} parameter(0)", f"ROOT %y = {dtype}[1024]{{0}} copy(%x)")
    assert traffic(text).bytes == 2 * size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no module", "expected the text of an HLO module"),
        (_entry("%x = f32[4]{0} parameter(0)", "ROOT y: f32"), "cannot read the HLO instruction"),
        (_entry("%x = foo[4]{0} parameter(0)", "ROOT %y = foo[4]{0} copy(%x)"), "unknown HLO element type 'foo'"),
        (_entry("%x = f32[4]{0} parameter(0)", "ROOT %y = f32[4]{0} fusion(%x), kind=kLoop"), "names no computation"),
    ],
)
def test_unreadable_hlo_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        traffic(text)


def test_launches_of_a_kernel():
    artefacts = Artefacts(KNOWN, "", {}, {}, {}, 1, 2, 3, 4)
    program = Program(TARGETS["sm_90"], artefacts)
    assert [launch.trips for launch in program.launches_of("added")] == [8]
    assert (program.argument_bytes, program.output_bytes, program.temporary_bytes) == (1, 2, 4)
    with pytest.raises(ValueError, match="no launch of 'norm'; the program launches added"):
        program.launches_of("norm")
