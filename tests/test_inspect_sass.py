"""Occupancy, loops, the issue model, what ptxas and nvdisasm report, and the cache, on hand-made input."""

import json

import pytest

from bench.inspect import TARGETS, cache, occupancy
from bench.inspect.artefacts import Artefacts, geometries
from bench.inspect.cost import memory_us, model
from bench.inspect.loops import find_loops
from bench.inspect.program import Kernel
from bench.inspect.sass import Instruction, parse_disassembly, parse_resources
from bench.inspect.targets import find_target

KIB = 1024


@pytest.mark.parametrize(
    ("target", "threads", "registers", "shared", "expected"),
    [
        # 131 registers: 4352 a warp, 3 of them in the 16384 of a partition, 12 warps of one each.
        ("sm_90", 32, 131, 0, (12, 12, 12 / 64, "registers")),
        # 128 registers: 4096 a warp, 16 warps, 4 blocks of 4.
        ("sm_90", 128, 128, 0, (4, 16, 0.25, "registers")),
        # 32 registers: 64 warps; 2048 threads are 16 blocks of 128.
        ("sm_90", 128, 32, 64, (16, 64, 1.0, "threads")),
        # 40 KiB + 1 KiB of 228: 5 blocks.
        ("sm_90", 128, 32, 40 * KIB, (5, 20, 20 / 64, "shared memory")),
        # The same on 100 KiB: 2 blocks of 48 warps.
        ("sm_89", 128, 32, 40 * KIB, (2, 8, 8 / 48, "shared memory")),
        # One warp a block: 32 block slots.
        ("sm_80", 32, 16, 0, (32, 32, 0.5, "blocks")),
        # 65 threads are 3 warps: 1536 threads hold 16 of them.
        ("sm_120", 65, 16, 0, (16, 48, 1.0, "threads")),
        # Nothing fits.
        ("sm_90", 1024, 255, 0, (0, 0, 0.0, "registers")),
    ],
)
def test_occupancy_by_hand(target, threads, registers, shared, expected):
    found = occupancy(TARGETS[target], threads=threads, registers=registers, shared_bytes=shared)
    assert (found.blocks, found.warps, found.fraction, found.limiter) == expected


def test_impossible_kernels_and_unknown_targets_are_refused():
    with pytest.raises(ValueError, match="threads=2048"):
        occupancy(TARGETS["sm_90"], threads=2048, registers=32, shared_bytes=0)
    with pytest.raises(ValueError, match="one of sm_80, sm_89, sm_90, sm_100, sm_120, got 'h100'"):
        find_target("h100")


def test_target_config_of_an_accelerated_architecture():
    assert "major: 9 minor: 0 feature_extension: ACCELERATED" in TARGETS["sm_90"].target_config()
    assert "major: 12 minor: 0 feature_extension: NONE" in TARGETS["sm_120"].target_config()


def _code(*lines):
    """Instructions from "[@P] OPCODE operands"."""
    found = []
    for number, line in enumerate(lines):
        predicate, rest = line.split(" ", 1) if line.startswith("@") else ("", line)
        opcode, _, operands = rest.partition(" ")
        found.append(Instruction(16 * number, predicate, opcode, operands))
    return tuple(found)


NESTED = _code(
    "MOV R0,RZ",  # 0x00
    "FADD R1,R1,R2",  # 0x10 outer header
    "FFMA R3,R3,R4,R5",  # 0x20 inner header
    "@P0 BRA 0x20",  # 0x30
    "BRA.DIV UR4,0x70",  # 0x40 divergent: handled out of line
    "@!P1 BRA 0x10",  # 0x50
    "EXIT",  # 0x60
    "SHFL.BFLY R1,R1",  # 0x70
    "BRA 0x50",  # 0x80
)


def test_natural_loops():
    outer, inner = find_loops(NESTED)
    assert (outer.header, outer.depth, inner.header, inner.depth) == (0x10, 1, 0x20, 2)
    assert outer.histogram == {"FADD": 1, "FFMA": 1, "BRA": 4, "SHFL": 1}
    assert inner.histogram == {"FFMA": 1, "BRA": 1}
    assert find_loops(_code("FADD R1,R1,R2", "@P0 BRA 0x30", "FADD R1,R1,R2", "EXIT")) == ()
    assert find_loops(()) == ()


def _kernel(code, **changes):
    values = {
        "name": "toy",
        "target": TARGETS["sm_90"],
        "grid": (264, 1, 1),
        "threads": 128,
        "shared_bytes": 0,
        "registers": 32,
        "spill_bytes": 0,
        "stack_bytes": 0,
        "ptx": "",
        "instructions": code,
        "is_pallas": True,
        "is_gemm": False,
    }
    return Kernel(**(values | changes))


def test_model_by_hand():
    # 264 blocks on 132 multiprocessors: 2 blocks of 4 warps. Per warp: 1 MOV, 10 x (FADD, BRA.DIV, BRA), the inner loop
    # 10 x 20 times FFMA and BRA, and out of line, counted with the outer loop, 10 x (SHFL, BRA); one EXIT.
    found = model(_kernel(NESTED), moved_bytes=3.35232e6, trips={0x10: 10, 0x20: 20})
    issued = 1 + 10 * 3 + 200 * 2 + 10 * 2 + 1
    assert found.clocks["issue"] == 8 * issued / 4
    assert found.clocks["fp32"] == 8 * (10 + 200) * 32 / 128
    assert found.clocks["memory"] == 8 * 10 * 1
    assert found.unit == "issue"
    assert found.issue_us == pytest.approx(8 * issued / 4 / 1755)
    assert found.memory_us == pytest.approx(1.0)
    assert found.memory_bound
    assert not model(_kernel(NESTED), moved_bytes=3.35232e5, trips={0x10: 10, 0x20: 20}).memory_bound
    assert memory_us(2.03904e12, TARGETS["sm_80"]) == pytest.approx(1e6)


def test_narrow_units_and_wide_accesses_take_longer():
    code = _code("MUFU.RSQ R1,R1", "LDG.E.128 R4,desc[UR6][R20.64]", "LDG.E.U16 R4,desc[UR6][R20.64]", "HGMMA.64x64 R1")
    found = model(_kernel(code, grid=(1, 1, 1), threads=32), moved_bytes=0)
    assert (found.clocks["special"], found.clocks["memory"], found.unit) == (2, 4 + 1, "memory")
    assert found.uncounted == {"HGMMA": 1}
    ampere = _kernel(_code("FADD R1,R1,R2"), target=TARGETS["sm_80"], grid=(1, 1, 1), threads=32)
    assert model(ampere, moved_bytes=0).clocks["fp32"] == 0.5  # half the lanes of later ones


def test_the_model_guesses_nothing():
    with pytest.raises(ValueError, match=r"trip count of the loop at 0x10 \(7 .*; the loop at 0x20 \(2 instructions"):
        model(_kernel(NESTED), moved_bytes=1)
    with pytest.raises(ValueError, match="no loop at 0x40; its loops start at 0x10, 0x20"):
        model(_kernel(NESTED), moved_bytes=1, trips={0x40: 1})
    with pytest.raises(ValueError, match="no GPU has tuned"):
        model(_kernel(NESTED, is_gemm=True), moved_bytes=1, trips={0x10: 1, 0x20: 1})
    polls = _code("SYNCS.PHASECHK R1", "@!P0 BRA 0x0", "EXIT")
    assert model(_kernel(polls), moved_bytes=1).clocks["issue"] == 8 * 3 / 4


REPORT = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for helper
    8 bytes stack frame, 1 bytes spill stores, 2 bytes spill loads
ptxas info    : Function properties for first
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 2048 bytes smem
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers
"""


def test_assembler_report():
    found = parse_resources(REPORT)
    first, second = found["first"], found["second"]
    assert (first.registers, first.stack_bytes, first.spill_store_bytes, first.spill_load_bytes) == (40, 16, 12, 20)
    assert (first.shared_bytes, second.shared_bytes, second.registers) == (2048, 0, 255)
    with pytest.raises(ValueError, match="no registers or no stack frame for 'second'"):
        parse_resources(REPORT.replace("Used 255 registers", ""))


def test_disassembly():
    entries = [
        {"opcode": "P2R", "operands": "R1,PR,RZ,0x4", "predicate": "PR"},
        {"opcode": "FFMA.FTZ", "operands": "R1,R2,R3,R4", "predicate": "@!P0"},
        {"opcode": "EXIT"},
        {"opcode": "BRA", "operands": "0x30"},
        {"opcode": "NOP"},
    ]
    text = json.dumps([{"SM": {}}, [{"function-name": "toy", "sass-instructions": entries}]])
    code = parse_disassembly(text)["toy"]
    assert [(i.address, i.predicate, i.base) for i in code] == [(0, "", "P2R"), (16, "@!P0", "FFMA"), (32, "", "EXIT")]
    with pytest.raises(ValueError, match="expected nvdisasm's JSON"):
        parse_disassembly("\tcode for sm_90")


def test_launch_geometry():
    thunks = """001: kCopy         [source] kCopy
  body:
    011: kCustomKernel       [prev=008 (2)] row_norm grid: [64, 2, 1] threads: [128, 1, 1]  shared_memory: 64 bytes"""
    found = geometries(thunks)
    assert list(found) == ["row_norm"]
    assert (found["row_norm"].grid, found["row_norm"].threads, found["row_norm"].shared_bytes) == (
        (64, 2, 1),
        (128, 1, 1),
        64,
    )


@pytest.fixture
def artefacts():
    return Artefacts("hlo", "thunks", {"k": "ptx"}, {"k": "report"}, {"k": "sass"}, 1, 2, 3, 4)


def test_cache_round_trip_and_directory(artefacts, monkeypatch, tmp_path):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "deep" / "er"))
    assert cache.load("name") is None
    cache.store("name", artefacts)
    assert cache.load("name") == artefacts
    assert [file.name for file in (tmp_path / "deep" / "er").iterdir()] == ["name.json.gz"]
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.directory() == tmp_path / "megalodon-pallas" / "inspect"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.directory() == tmp_path / ".cache" / "megalodon-pallas" / "inspect"


def test_damaged_entries_are_not_trusted(artefacts, monkeypatch, tmp_path):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    cache.store("name", artefacts)
    path = tmp_path / "name.json.gz"
    whole = path.read_bytes()
    flipped = whole[:20] + bytes([whole[20] ^ 1]) + whole[21:]
    for damaged in (b"", b"text", whole[:-9], flipped):
        path.write_bytes(damaged)
        assert cache.load("name") is None
    for change in ({"hlo": 1}, {"ptx": {"k": 1}}, {"more": 1}, {"temporary_bytes": "4"}, {"temporary_bytes": True}):
        with pytest.raises(ValueError, match="entr"):
            Artefacts.from_plain(artefacts.to_plain() | change)
    assert Artefacts.from_plain(artefacts.to_plain()) == artefacts


def test_the_key_depends_on_everything():
    def key(program="p", config="t", options=(("a", "1"),), versions=(("jax", "1"),)):
        return cache.key(program, config, dict(options), dict(versions))

    changed = [
        key(program="q"),
        key(config="u"),
        key(options=(("a", "2"),)),
        key(options=(("a", True),)),
        key(versions=(("jax", "2"),)),
    ]
    assert key() == key()
    assert len({key(), *changed}) == 6
