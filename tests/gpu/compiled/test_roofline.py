"""What is counted along the fast path of a kernel, and what that predicts."""

import json

import pytest

from tests.gpu.compiled import roofline, sass
from tests.gpu.compiled.resources import Resources

STALL = 1 << 41  # a control field: the next instruction waits one cycle, and nothing else is waited for
FREE = STALL | 7 << 46 | 7 << 49


def code(text):
    """Instructions, 16 bytes apart, of lines "opcode operands", a predicate first where there is one."""
    lines = [line.split(maxsplit=1) for line in text.strip().splitlines()]
    found = []
    for i, words in enumerate(lines):
        predicate = words[0][1:] if words[0].startswith("@") else None
        opcode, _, operands = (words[1] if predicate else " ".join(words)).partition(" ")
        found.append(sass.Instruction(16 * i, predicate, opcode, operands, FREE))
    return found


LOOP = code("""
    S2R R0
    @P1 BRA 0x60
    LDG.E.128 R4
    MUFU.EX2 R4
    FADD R4
    @P0 BRA 0x20
    @!P2 BRA 0x90
    MOV R8
    CALL.REL.NOINC 0x200
    STG.E.128 R4
    EXIT
""")


def test_a_loop_runs_as_often_as_it_is_told_to_and_no_slow_path_is_taken():
    path = [i.opcode for i in sass.fast_path(sass.Graph(LOOP), [3])]
    loop = ["LDG.E.128", "MUFU.EX2", "FADD", "BRA"]
    assert path == ["S2R", "BRA", *3 * loop, "BRA", "STG.E.128", "EXIT"]


def test_a_loop_of_which_nothing_is_told_is_an_error():
    with pytest.raises(ValueError, match="1 loops, of which 2 are told"):
        sass.fast_path(sass.Graph(LOOP), [3, 1])


def test_the_way_that_computes_is_the_fast_path():
    branch = code("@P0 BRA 0x40\nFADD R0\nFADD R0\nEXIT\nMUFU.RCP R0\nEXIT")
    assert [i.opcode for i in sass.fast_path(sass.Graph(branch), [])] == ["BRA", "MUFU.RCP", "EXIT"]


def test_of_a_product_the_innermost_loop_is_counted():
    nested = code("FADD R0\nMOV R0\nFFMA R0\nFFMA R0\n@P0 BRA 0x20\n@P1 BRA 0x10\nEXIT")
    assert [i.opcode for i in sass.product(nested)] == ["FFMA", "FFMA", "BRA"]


def test_a_warp_alone_waits_for_what_it_loads():
    load = sass.Instruction(0, None, "LDG.E", "R0", STALL | 2 << 46 | 7 << 49)
    use = sass.Instruction(16, None, "FADD", "R0", FREE | 1 << 52 + 2)
    assert roofline.alone([load, use]) == roofline.LATENCY["LDG"] + 1
    assert roofline.alone([load, load, use]) == roofline.LATENCY["LDG"] + 2


def test_throughput_is_bound_by_the_slowest_server_and_by_latency():
    assert roofline.throughput(1, [2.0, 3.0], alone=50) == pytest.approx(1 / 50)
    assert roofline.throughput(200, [2.0, 3.0], alone=50) == pytest.approx(1 / 3, rel=1e-2)
    assert roofline.throughput(4, [2.0, 3.0], alone=1000) == pytest.approx(4 / 1000, rel=1e-2)


def test_a_kernel_that_copies_is_bound_by_memory():
    copy = code("LDG.E.128 R0\nSTG.E.128 R0\nEXIT")
    prediction = roofline.predicted(copy, {"trips": [], "elements": 4, "bytes": 8}, Resources(128, 16, 0, 0, 0, 1.0))
    assert prediction.limit == "main memory" and prediction.share > 0.95 and prediction.instructions == 0.8


def test_a_share_that_falls_by_more_than_five_points_is_told(tmp_path):
    entry = {"path": {"kernel": "k", "trips": [], "elements": 4, "bytes": 8}}
    (tmp_path / "predictions.json").write_text(json.dumps({"copy": entry}))
    copy = roofline.predicted(code("LDG.E.128 R0\nSTG.E.128 R0\nEXIT"), entry["path"], Resources(128, 16, 0, 0, 0, 1.0))
    roofline.write(tmp_path, {"copy": copy})
    before = roofline.kept(tmp_path)
    assert before["copy"]["path"] == entry["path"] and roofline.fallen(before, {"copy": copy}) == []
    assert roofline.fallen(before, {"copy": copy._replace(share=copy.share - 0.04)}) == []
    assert len(roofline.fallen(before, {"copy": copy._replace(share=copy.share - 0.06)})) == 1
