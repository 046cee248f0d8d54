"""The model of a launch from what was counted, machine code by line and unit, and what is printed of both."""

import ast
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from gradlab.profiling.emulate.model import PARTS, model
from gradlab.profiling.emulate.report import count, show, summary, write_json
from gradlab.profiling.emulate.result import CaseResult, Comparison, LaunchResult
from gradlab.profiling.machine_code.gpus import DEFAULT_GPUS, GPUS, RATES
from gradlab.profiling.machine_code.pipes import Mix, loops_of, mix, read, unit
from gradlab.profiling.machine_code.targets import TARGETS
from gradlab.profiling.ptx.counts import Counts
from gradlab.profiling.ptx.execute import Executed
from gradlab.profiling.ptx.faults import Fault
from gradlab.profiling.ptx.global_memory import Extent, GlobalMemory
from gradlab.profiling.ptx.parse import parse
from gradlab.profiling.ptx.program import Place

ROOT = Path(__file__).parents[1]
H100, A100 = GPUS["H100"], GPUS["A100"]


def launch(body, grid=1, blocks=None, threads=256, shared=98304, registers=64, arch="sm_90", access=None, **counted):
    """A launch of which each instruction was executed by so many warps as `issued` says, and did what else is given."""
    program = parse('.entry k() {\n .reg .b32 %r<9>;\n .file 1 "/somewhere/kernel.py"\n' + body + "\n}")
    counts = Counts(len(program.instructions), True, GlobalMemory([Extent(0, 2**20, "x"), Extent(2**21, 2**20, "y")]))
    for name, values in counted.items():
        name = "threads" if name == "executed_by" else name
        getattr(counts, name)[:] = values
    if access is not None:
        access(counts)
        counts.next_blocks()
    executed = Executed(program, counts, [])
    return LaunchResult("k", "torch", arch, "forward", (grid, 1, 1), threads, shared, registers, "kernel.py", executed)


@pytest.mark.parametrize("name", [name for name, g in GPUS.items() if g.arch in RATES])
def test_rates_are_the_datasheets(name):
    gpu, rates = GPUS[name], RATES[GPUS[name].arch]
    half = rates.tensor["bf16"] * gpu.multiprocessors * gpu.clock
    assert half == pytest.approx(gpu.ceilings.rates["bfloat16"], rel=0.01)
    # Float32 has a boost clock of its own on Hopper, and is the same on all others.
    single = 2 * rates.float32 * gpu.multiprocessors * gpu.clock
    assert single == pytest.approx(gpu.ceilings.rates["float32"], rel=0.09)
    assert set(RATES) == set(DEFAULT_GPUS) - {"gfx942"}


def test_a_step_of_a_product():
    """128 x 128 x 64 in bfloat16 by two groups of four warps: shared memory bounds it, tensor cores reach 80 %.

    Each group reads 64 x 64 of one operand and 128 x 64 of the other, 24 KiB: 192 passes; 32 KiB are written by copies:
    256 passes. 2 x 128 x 128 x 64 FLOP at 4096 a cycle: 512 cycles.
    """
    done = launch(
        """
        wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%r1}, %r2, %r3, 1, 1, 1, 0, 1;
        cp.async.cg.shared.global [%r1], [%r2], 0x10;
        """,
        issued=[32, 64],
        operations=[2 * 128 * 128 * 64, 0],
        passes=[2 * 192, 256],
    )
    found = model(done, H100)
    assert found.cycles["shared"] == 640
    assert found.cycles["tensor"] == 512
    assert found.cycles["issue"] == 24
    assert (found.bound, found.share("tensor")) == ("shared", 0.8)
    assert (found.blocks, found.limiter) == (2, "shared memory")


def test_the_same_by_warps_on_their_own():
    """mma.sync is all that sm_80 has, and less than all of Hopper."""
    line = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r1}, {%r1}, {%r2}, {%r1};"
    flop = 2 * 128 * 128 * 64
    on_a100 = model(launch(line, issued=[1], operations=[flop], arch="sm_80"), A100)
    on_h100 = model(launch(line, issued=[1], operations=[flop]), H100)
    assert on_a100.cycles["tensor"] == 1024
    assert on_h100.cycles["tensor"] == pytest.approx(512 / 0.63)


def test_units_by_kind_of_instruction():
    done = launch(
        """
        fma.rn.f32 %r1, %r2, %r3, %r4;
        mad.lo.s32 %r1, %r2, %r3, %r4;
        fma.rn.bf16x2 %r1, %r2, %r3, %r4;
        and.b32 %r1, %r2, %r3;
        setp.lt.f32 %r1, %r2, %r3;
        ex2.approx.f32 %r1, %r2;
        cvt.f32.bf16 %r1, %r2;
        cvt.rn.bf16.f32 %r1, %r2;
        add.f64 %r1, %r2, %r3;
        shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;
        """,
        issued=[100] * 10,
    )
    found = model(done, H100).cycles
    assert found["issue"] == 1000 / 4
    assert found["FMA"] == 200 * 32 / 128 + 100 * 32 / 128
    assert found["ALU"] == 300 * 32 / 64
    assert found["special"] == 200 * 32 / 16
    assert found["float64"] == 100 * 32 / 64
    # A shuffle is a pass of 32 words.
    assert found["shared"] == 100
    assert list(found) == [part for part in PARTS if part in found]
    # An A100 has half the lanes for float32, and as many for integer products.
    assert model(dataclasses.replace(done, arch="sm_80"), A100).cycles["FMA"] == 200 * 32 / 64 + 100 * 32 / 128


def test_memory_of_the_whole_launch():
    """Two blocks at once read 1024 sectors twice each and write 512: L2 gives each block its sectors once."""

    def access(counts):
        counts.blocks = 2
        lanes, sectors = np.arange(2048), np.repeat(np.arange(1024), 2)
        for _ in range(2):
            counts.global_access(0, 32 * sectors, lanes, 4, write=False)
        counts.global_access(0, 2**21 + 32 * np.arange(512), np.arange(512), 4, write=True)

    done = launch("ld.global.b32 %r1, [%r2];", grid=2, issued=[64], access=access)
    found = model(done, H100).cycles
    # The blocks' warps alternate: each block reads half of the sectors, and those twice.
    assert found["L2"] == (1024 + 512) * 32 / 5120
    assert found["memory"] == pytest.approx((1024 + 512) * 32 / (3.35e12 / 1.83e9))
    assert found["shared"] == (2 * 1024 + 512) * 32 / 128 / 2
    assert "L2" not in model(done, GPUS["L4"]).cycles


@pytest.mark.parametrize(
    ("grid", "busiest", "waves"), [(1, 1, 1 / 264), (132, 1, 0.5), (133, 2, 133 / 264), (264, 2, 1)]
)
def test_the_busiest_multiprocessor(grid, busiest, waves):
    done = launch("fma.rn.f32 %r1, %r2, %r3, %r4;", grid=grid, issued=[400 * grid])
    found = model(done, H100)
    assert (found.busiest, found.waves) == (busiest, pytest.approx(waves))
    assert found.cycles["issue"] == pytest.approx(100 * busiest)


def test_no_model_where_nothing_fits_or_no_rates_are_known():
    assert model(launch("ret;", shared=2**18), H100) is None
    assert model(launch("ret;"), GPUS["MI300X"]) is None


DISASSEMBLED = """
	//## File "/somewhere/kernel.py", line 3
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;
        /*0010*/              @!P0 FADD.FTZ R2, R3, R4 ;
.L_x_0:
	//## File "/triton/standard.py", line 90
        /*0020*/                   MUFU.EX2 R2, R3 ;
	//## File "/elsewhere/kernel.py", line 4
        /*0030*/                   LDG.E.128 R4, [R2.64] ;
        /*0040*/                   HFMA2.BF16 R2, R3, R4, R5 ;
        /*0050*/              @P0  BRA `(.L_x_0) ;
.L_x_1:
        /*0060*/                   BRA `(.L_x_1);
        /*0070*/                   NOP ;
"""


def test_machine_code_by_line_and_unit():
    found = read(DISASSEMBLED, "/somewhere/kernel.py")
    assert (found.instructions, found.loops) == (7, 1)
    assert found.parts == {
        (0, 3): {"multiply": 1, "float32": 1},
        (1, 0): {"special": 1},
        (1, 4): {"other": 2, "half": 1},
        (0, 4): {"other": 1},
    }
    assert found.lines == {3: 2, 0: 1, 4: 4}
    names = ("DFMA", "IADD3.X", "UIADD3", "LOP3.LUT", "FMNMX", "F2FP.BF16.F32.PACK_AB", "STS", "HGMMA.64x128x16.F32")
    assert [unit(n) for n in names] == [
        "float64",
        "integer",
        "other",
        "integer",
        "integer",
        "special",
        "other",
        "other",
    ]
    # A name that begins like another is not it.
    assert unit("SHFL.BFLY") == "other"


def test_the_innermost_loop_of_an_instruction():
    assert loops_of(8, [(1, 6), (2, 3), (4, 5), (7, 7)]) == [0, 1, 2, 2, 3, 3, 1, 0]
    assert loops_of(2, []) == [0, 0]


IN_A_LOOP = """
.loc 1 3 0
mov.b32 %r1, %r2;
$LOOP:
.loc 1 4 0
add.f32 %r1, %r2, %r3;
add.f32 %r1, %r2, %r3;
@%p1 bra $LOOP;
add.f32 %r1, %r2, %r3;
"""


def test_machine_code_is_executed_as_often_as_its_line_in_its_loop():
    done = launch(IN_A_LOOP, issued=[8, 800, 400, 800, 8])
    units = {"float32": 3, "other": 1}
    code = Mix(10, 1, {(0, 0): {"other": 1}, (0, 3): {"integer": 2}, (1, 4): units, (1, 5): {"special": 3}})
    found = model(done, H100, code)
    assert found.instructions == 2016
    # In the loop the three of PTX are executed 667 times on average, and so is what PTX has no line for there.
    assert found.machine == pytest.approx(8 * (1 + 2) + 2000 / 3 * (4 + 3))
    assert found.cycles["FMA"] == pytest.approx(3 * 2000 / 3 * 32 / 128)
    assert found.cycles["special"] == pytest.approx(3 * 2000 / 3 * 32 / 16)
    assert found.cycles["ALU"] == 2 * 8 * 32 / 64


def test_triton_s_machine_code_of_a_loop():
    """Twice the steps execute the loop's instructions so much more often, as many as stand in it."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    from gradlab.profiling.emulate.compare import How, function
    from tests.kernels_in_a_loop_triton import rows

    how = How(TARGETS["sm_90"])
    one, two = (function(rows, [torch.ones(64, n)], "torch", "rows", "float32", how).launches[0] for n in (256, 512))
    code = mix(one.ptx, one.cubin, TARGETS["sm_90"], one.file)
    assert code.loops == 1
    in_loop = sum(sum(units.values()) for (loop, _), units in code.parts.items() if loop)
    assert in_loop > 20
    more = model(two, H100, code).machine - model(one, H100, code).machine
    # Two more steps by each of the warps of each block.
    assert more == pytest.approx(in_loop * 2 * (one.threads // 32) * one.grid[0])


def test_machine_code_with_other_loops_is_taken_by_line_alone():
    done = launch(IN_A_LOOP, issued=[8, 800, 400, 800, 8])
    code = Mix(10, 2, {(0, 0): {"other": 1}, (0, 3): {"integer": 2}, (1, 4): {"float32": 4}, (2, 5): {"special": 3}})
    assert model(done, H100, code).machine == 8 * (1 + 2 + 3) + (800 + 400 + 800 + 8) / 4 * 4


def fault(**changes):
    place = Place("/triton/standard.py", 7, (Place("/somewhere/kernel.py", 5),))
    text = "byte 4096 of x_ptr, which has 4096"
    return dataclasses.replace(Fault("out of bounds", place, "ld.global.b32 %r1, [%r2];", text, 1, 1, 3), **changes)


def case(tmp_path, faults=(), ok=True, error=""):
    source = tmp_path / "kernel.py"
    source.write_text("import triton\n\n\ndef kernel(x_ptr):\n    x = tl.load(x_ptr)\n    tl.store(y_ptr, x)\n")
    done = launch(
        ".loc 1 5 0\n ld.global.b32 %r1, [%r2];\n .loc 1 6 0\n add.f32 %r1, %r2, %r3;",
        grid=4,
        issued=[16, 40],
        executed_by=[512, 480],
        threads=64,
        access=lambda counts: counts.global_access(0, 8 * np.arange(32), np.arange(32), 4, write=False),
    )
    done = dataclasses.replace(done, file=str(source), executed=dataclasses.replace(done.executed, faults=list(faults)))
    compared = (Comparison("y", 0.25, 0.5 if ok else 0.125, ok),)
    return CaseResult("relu", "odd", "torch", "float32", "sm_90", "first", (done, done), compared, 1.0, error)


def printed(*results, **options):
    console = Console(file=io.StringIO(), width=80)
    for result in results:
        show(result, console, **options)
    summary(results, console)
    return console.file.getvalue()


@pytest.fixture
def without_tools(monkeypatch):
    """The model by PTX: what has no machine code cannot be taken apart."""
    monkeypatch.setattr("gradlab.profiling.emulate.report.closest", model)


def test_what_is_printed_of_a_case(tmp_path, without_tools):
    text = printed(case(tmp_path), lines=True)
    assert "relu: odd on torch, float32, sm_90, first warp ahead" in text
    rows = [line.split() for line in text.splitlines()]
    # Sectors of 32 lanes 8 bytes apart: 8, of which half is used; the same launch a second time has no row.
    assert rows.count(["k", "forward", "4", "56", "55%", "8", "50%", "1", "-", "-", "issue"]) == 1
    assert ["k", "0.015", "3.5", "bound"] in [row[:4] for row in rows]
    assert "y: largest difference 0.25, allowed 0.5" in text
    assert ["16", "8", "5", "x", "=", "tl.load(x_ptr)"] in rows
    assert ["40", "6", "tl.store(y_ptr,", "x)"] in rows
    assert "1 case, 2 launches, no fault; 1 of 1 result right" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_case_in_which_all_is_well_is_one_line(tmp_path):
    text = printed(case(tmp_path), full=False)
    assert (
        text.splitlines()[0]
        == "relu: odd on torch, float32, sm_90, first warp ahead: 2 launches, 1 result right, 1.0 s"
    )
    assert len(text.splitlines()) == 2


def test_faults_are_paragraphs(tmp_path, without_tools, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = printed(
        case(tmp_path, [fault(), fault(instruction="ld.global.b32 %r9, [%r2];", count=4)], ok=False), full=False
    )
    assert (
        """
kernel.py:5: out of bounds: byte 4096 of x_ptr, which has 4096
    k: x = tl.load(x_ptr)
    in /triton/standard.py:7
    ld.global.b32 %r1, [%r2], one of 2 instructions of the line
    program (1, 0, 0) of (4, 1, 1), warp 1
"""
        in text
    )
    assert "allowed 0.125: wrong" in text
    assert "1 case, 2 launches, 1 fault; 0 of 1 result right" in text
    noted = case(tmp_path)
    noted.launches[0].executed.notes.append(fault(kind="register in flight", repaired=True))
    assert (
        "note, made right by ptxas, which serialises wgmma here: kernel.py:5: register in flight: byte 4096"
        in printed(noted)
    )
    assert "2 launches, no fault" in printed(noted)
    stopped = printed(case(tmp_path, error="emulate: instruction is foo, wanted one of add"), full=False)
    assert "emulate: instruction is foo" in stopped
    assert stopped.rstrip().endswith("1 not executed to the end")


def test_json_has_every_number(tmp_path, without_tools):
    write_json(tmp_path / "out.json", [case(tmp_path, [fault()])], complete=False)
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["schema"], found["complete"]) == (1, False)
    (one,) = found["cases"]
    assert (one["op"], one["order"], one["ok"]) == ("relu", "first", False)
    assert one["comparisons"] == [{"what": "y", "largest": 0.25, "allowed": 0.5, "ok": True}]
    first = one["launches"][0]
    assert (first["grid"], first["registers"], first["kinds"]) == ([4, 1, 1], 64, {"float32": 40, "load": 16})
    assert first["lines"]["5"]["sectors"] == first["totals"]["sectors"] == 8
    assert first["tensors"][0] | {"size": 0} == {
        "name": "x",
        "size": 0,
        "read": 8,
        "written": 0,
        "fetched": 8,
        "distinct_read": 8,
        "distinct_written": 0,
    }
    assert first["model"]["bound"] == "issue"
    assert first["faults"][0]["text"] == "byte 4096 of x_ptr, which has 4096"
    assert "ptx" not in first
    lost = dataclasses.replace(case(tmp_path), comparisons=(Comparison("y", float("nan"), 1.0, False),))
    write_json(tmp_path / "out.json", [lost])
    assert json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)["complete"]


@pytest.mark.parametrize(
    ("number", "words"), [(7, "7"), (999, "999"), (999.6, "1k"), (44128, "44.1k"), (10**6, "1M"), (2.5e18, "2.5e+03P")]
)
def test_counts_in_three_digits(number, words):
    assert count(number) == words


def kinds_of_faults():
    """What the executor's files call faults: constants that are handed to what notes them."""
    for path in sorted((ROOT / "gradlab" / "profiling" / "ptx").glob("*.py")):
        tree = ast.parse(path.read_text())
        known = {}
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple | ast.Name):
                names = node.targets[0].elts if isinstance(node.targets[0], ast.Tuple) else node.targets
                values = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
                known |= {n.id: v.value for n, v in zip(names, values, strict=False) if isinstance(v, ast.Constant)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".fault", "._fault", "._say")):
                first = node.args[0]
                kind = first.value if isinstance(first, ast.Constant) else known.get(ast.unparse(first))
                if kind is not None:
                    yield kind


def test_the_page_has_every_kind_of_fault():
    page = (ROOT / "docs" / "emulate.md").read_text()
    found = set(kinds_of_faults())
    assert {"out of bounds", "race in shared memory", "misused barrier", "deadlock"} <= found
    assert not [kind for kind in found if kind not in page]
