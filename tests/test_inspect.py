"""`gradlab inspect` without its compiler: what is counted, occupancy, floors, tables, files, errors, Ctrl-C."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from gradlab import cli
from gradlab.kernels.bounds import Bound
from gradlab.kernels.spec import spec, specs
from gradlab.profiling.machine_code import amdgcn, command, gpus, inspection, places, sass, source_view, tools
from gradlab.profiling.machine_code.bounds import hold, subjects
from gradlab.profiling.machine_code.code import Code
from gradlab.profiling.machine_code.counts import Counts, CPUCounts
from gradlab.profiling.machine_code.executed import FirstProgram
from gradlab.profiling.machine_code.gpus import Ceilings
from gradlab.profiling.machine_code.targets import CPUS, TARGETS, occupancy
from gradlab.profiling.ptx.totals import Totals

OPS = ", ".join(specs())
SIDE = "torch" if importlib.util.find_spec("torch") else "jax"

SASS = """
\t.section\t.text.k,"ax",@progbits
\t//## File "/a/triton/language/standard.py", line 7
        /*0000*/                   MOV R1, c[0x0][0x28] ;
\t//## File "/b/op_triton.py", line 40
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0018*/                   LDG.E.64 R4, desc[UR4][R2.64] ;
        /*0020*/              @!P0 LDG.E.U16 R5, desc[UR4][R2.64+0x10] ;
        /*0030*/               @P1 LDGSTS.E.BYPASS.128 [R7], desc[UR4][R2.64] ;
        /*0040*/                   LDG.E.ENL2.256 R8, R4, desc[UR4][R2.64] ;
\t//## File "/b/op_triton.py", line 41
        /*0050*/              @UP0 HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0060*/                   UTCHMMA gdesc[UR4], gdesc[UR6], tmem[UR8] ;
        /*0070*/                   HMMA.16816.F32.BF16 R4, R8, R10, R4 ;
        /*0080*/                   DMMA.8x8x4 R4, R8, R10, R4 ;
        /*0090*/                   IMAD.WIDE R4, R8, R10, R4 ;
        /*00a0*/                   STL.64 [R1], R4 ;
        /*00b0*/                   LDL R4, [R1] ;
        /*00c0*/                   LDL.LU.128 R4, [R1] ;
        /*00d0*/                   LDS.128 R4, [R1] ;
        /*00e0*/                   LDGDEPBAR ;
        /*00f0*/                   DEPBAR.LE SB0, 0x1 ;
        /*0100*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0110*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0120*/                   STG.E desc[UR4][R2.64], R5 ;
        /*0130*/                   REDUX.OR UR4, R4 ;
        /*0140*/                   RED.E.ADD.STRONG.GPU desc[UR4][R2.64], R5 ;
        /*0150*/                   EXIT ;
        /*0160*/                   NOP ;
        /*0170*/                   NOP;
"""


def test_sass_is_counted_by_kind_and_line():
    assert sass.count(SASS, "/elsewhere/op_triton.py") == Counts(
        instructions=23,
        tensor=4,
        loads=5,
        wide_loads=3,
        stores=1,
        wide_stores=0,
        copies=1,
        waits=2,
        barriers=1,
        atomics=1,
        spills=3,
        spill_bytes=8 + 4 + 16,
        lines={40: 5, 41: 17},
    )
    assert sass.count(SASS).lines == {}


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "data is no ELF file of 64 bits"), (b"\x7fELF\x02" + bytes(59), "data has no section of code")],
)
def test_what_is_no_cubin_is_reported(data, said):
    with pytest.raises(ValueError, match=f"cubin: {said}"):
        sass.read([data], "sm_90a")


AMD = """
\t.file\t1 "/b" "op_triton.py"
\t.file\t2 "/a/triton" "standard.py"
_k:                               ; @_k
\t.loc\t1 12 0                    ; op_triton.py:12:0
\ts_load_dwordx4 s[0:3], s[0:1], 0x0
\tglobal_load_dwordx4 v[0:3], v0, s[0:1]
\tglobal_load_ushort v4, v0, s[0:1]
\t.loc\t2 99 5                    ; standard.py:99:5 @[ op_triton.py:14:9 ]
\tv_mfma_f32_32x32x8_bf16_1k a[0:15], v[0:1], v[2:3], a[0:15]
\ts_waitcnt vmcnt(0)
\ts_barrier
\tscratch_store_dwordx2 off, v[0:1], s32
\tbuffer_store_dwordx4 v[0:3], v4, s[0:3], 0 offen
\ts_endpgm
.Lfunc_end0:
\tglobal_load_dwordx4 v[0:3], v0, s[0:1]
  - .agpr_count:     0
    .group_segment_fixed_size: 64
    .private_segment_fixed_size: 8
    .vgpr_count:     27
"""


def test_amd_assembly_is_counted_by_kind_and_line():
    assert amdgcn.count(AMD, "op_triton.py") == Counts(
        instructions=9,
        tensor=1,
        loads=2,
        wide_loads=1,
        stores=1,
        wide_stores=1,
        waits=1,
        barriers=1,
        spills=1,
        spill_bytes=8,
        lines={12: 3, 14: 6},
    )
    assert amdgcn.resources(AMD) == (27, 8, 64)


def test_an_inlined_instruction_goes_to_the_line_that_called_it():
    ptx = (
        '\t.file\t1 "/b/op_triton.py"\n\t.file\t2 "/a/standard.py"\n'
        "\t.loc\t2 99 5                     // standard.py:99:5 @[ op_triton.py:14:9 ]\n\tadd.s32 %r1, %r2, %r3;\n"
        "\t.loc\t1 15 3                     // op_triton.py:15:3\n\t.loc\t2 7 7                      // standard.py:7:7\n"
    )
    assert sass.relined(ptx, "/here/op_triton.py").splitlines()[2:] == [
        "\t.loc\t1 14 9",
        "\tadd.s32 %r1, %r2, %r3;",
        "\t.loc\t1 15 3",
        "\t.loc\t2 7 7                      // standard.py:7:7",
    ]
    assert sass.relined(ptx, "other.py") == ptx


def test_an_instruction_inlined_twice_goes_to_the_line_that_called_it_as_triton_3_9_says():
    ptx = (
        '\t.file\t1 "/b/op_triton.py"\n\t.file\t2 "/b/many_triton.py"\n\t.file\t3 "/a/standard.py"\n'
        "\t.loc\t2 36 21, function_name $L__info_string0, inlined_at 1 90 14 // many_triton.py:36:21\n"
        "\t.loc\t3 7 7, function_name $L__info_string1, inlined_at 2 36 21 // standard.py:7:7\n"
        "\t.loc\t3 8 8, function_name $L__info_string1, inlined_at 2 99 99 // standard.py:8:8\n"
        "\t.loc\t1 91 23                         // op_triton.py:91:23\n"
    )
    assert sass.relined(ptx, "/here/op_triton.py").splitlines()[3:] == [
        "\t.loc\t1 90 14",
        "\t.loc\t1 90 14",
        "\t.loc\t3 8 8, function_name $L__info_string1, inlined_at 2 99 99 // standard.py:8:8",
        "\t.loc\t1 91 23",
    ]


def test_an_operation_of_pallas_stands_on_the_innermost_line_of_its_kernel():
    text = """module {
  tt.func public @k() {
    tt.return loc(#loc7)
  } loc(#loc)
} loc(#loc)
#loc = loc(unknown)
#loc1 = loc("/b/op_pallas.py":13:27 to :37)
#loc2 = loc("/b/op_pallas.py":20:1)
#loc3 = loc("/x/launch.py":105:20 to :33)
#loc4 = loc("kernel"(#loc1))
#loc5 = loc(callsite(#loc2 at #loc3))
#loc6 = loc(callsite(#loc4 at #loc5))
#loc7 = loc("swap:"(#loc6))
#loc8 = loc("swap:"(#loc3))"""
    lines = places.placed(text, "/b/op_pallas.py", 10).splitlines()
    assert lines[3] == '  } loc("/b/op_pallas.py":10:0)'
    assert lines[-2:] == ['#loc7 = loc("/b/op_pallas.py":13:27)', '#loc8 = loc("swap:"(#loc3))']
    assert lines[10] == '#loc5 = loc("/b/op_pallas.py":20:1)'
    assert places.placed(text, "", 0) == text


@pytest.mark.parametrize(
    ("arch", "registers", "threads", "shared", "blocks", "share", "limiter"),
    [
        # By hand, from the limits in NVIDIA's programming guide.
        ("sm_90", 32, 128, 0, 16, 1.0, "warps"),
        ("sm_90", 33, 128, 0, 12, 0.75, "registers"),
        ("sm_90", 255, 128, 0, 2, 0.125, "registers"),
        ("sm_90", 32, 32, 0, 32, 0.5, "blocks"),
        ("sm_90", 113, 256, 96 * 1024, 2, 0.25, "registers"),
        ("sm_90", 64, 128, 100 * 1024, 2, 0.125, "shared memory"),
        ("sm_90", 64, 128, 227 * 1024, 1, 0.0625, "shared memory"),
        ("sm_90", 64, 128, 227 * 1024 + 1, 0, 0.0, "shared memory"),
        ("sm_90", 64, 128, 114 * 1024 - 128, 1, 0.0625, "shared memory"),
        ("sm_80", 64, 128, 100 * 1024, 1, 0.0625, "shared memory"),
        ("sm_86", 32, 128, 0, 12, 1.0, "warps"),
        ("sm_86", 16, 64, 0, 16, 2 / 3, "blocks"),
        ("sm_89", 16, 64, 0, 24, 1.0, "warps"),
    ],
)
def test_occupancy(arch, registers, threads, shared, blocks, share, limiter):
    found = occupancy(TARGETS[arch], registers, threads, shared)
    assert (found.blocks, found.share, found.limiter) == (blocks, pytest.approx(share), limiter)


def test_amd_has_no_occupancy_rather_than_a_wrong_one():
    assert occupancy(TARGETS["gfx942"], 32, 256, 0) is None


def test_a_floor_names_its_ceiling():
    h200 = gpus.GPUS["H200"].ceilings
    assert gpus.floor(2e12, 1e6, "bfloat16", h200) == gpus.Floor(2e12 / 989.4e12, "989.4 TFLOP/s, datasheet")
    assert gpus.floor(2e12, 48e9, "bfloat16", h200) == gpus.Floor(0.01, "4.8 TB/s, datasheet")
    measured = Ceilings({"bfloat16": 500e12}, 4.3e12, "measured")
    assert gpus.floor(1e12, 0, "bfloat16", measured) == gpus.Floor(0.002, "500 TFLOP/s, measured")
    assert {g.arch for g in gpus.GPUS.values()} == set(TARGETS) - set(CPUS) == set(gpus.DEFAULT_GPUS)
    assert all(gpus.GPUS[name].arch == arch for arch, name in gpus.DEFAULT_GPUS.items())


def code(**changes):
    """A kernel as it would be read."""
    counts = Counts(
        instructions=100, tensor=4, loads=20, wide_loads=16, stores=4, wide_stores=4, lines={36: 10, 46: 90}
    )
    return Code(
        **{
            "op": "linear", "case": "transformer", "side": SIDE, "dtype": "bfloat16", "arch": "sm_90",
            "kernel": "matmul", "variant": 1, "direction": "forward", "grid": (2048,), "threads": 256,
            "registers": 116, "blocks": 2, "occupancy": 0.25, "limiter": "registers", "shared_dynamic": 98304,
            "counts": counts, "gpu": "H200", "waves": 7.76, "floor": 2.78e-4, "ceiling": "989.4 TFLOP/s, datasheet",
            "file": "gradlab/kernels/common/matmul_triton.py", "line": 13, **changes,
        }
    )  # fmt: skip


def cpu_code(**changes):
    """The same of a CPU."""
    inner = CPUCounts(
        instructions=60,
        loads=12,
        wide_loads=8,
        stores=4,
        wide_stores=4,
        bits=256,
        fmas=32,
        gathers=2,
        masked=6,
        divisions=1,
    )
    return Code(
        **{
            "op": "linear", "case": "transformer", "side": SIDE, "dtype": "float32", "arch": "native",
            "kernel": "matmul", "variant": 1, "direction": "forward", "grid": (512,), "threads": 1, "registers": 13,
            "counts": dataclasses.replace(inner, instructions=729, lines={36: 10, 46: 90}), "inner": inner,
            "cpu": "znver3", "vector_bits": 256, "stack": 262640, "scratch": 287616, "size": 3953,
            "file": "gradlab/kernels/common/matmul_triton.py", "line": 13, **changes,
        }
    )  # fmt: skip


def with_counts(**changes):
    return code(counts=dataclasses.replace(code().counts, **changes))


@pytest.mark.parametrize(
    ("bound", "kernel", "holds"),
    [
        (Bound("spill_bytes", most=0), with_counts(), True),
        (Bound("spill_bytes", most=0), with_counts(spill_bytes=4), False),
        (Bound("wide_share", least=0.8), with_counts(), True),
        (Bound("wide_share", least=0.84), with_counts(), False),
        (Bound("wide_share", least=1.0), with_counts(loads=0, wide_loads=0, stores=0, wide_stores=0), True),
        (Bound("registers", most=128), code(), True),
        (Bound("registers", most=115), code(), False),
        (Bound("occupancy", least=0.5), code(), False),
        (Bound("occupancy", least=0.5), code(occupancy=None), True),
        (Bound("tensor", least=1, most=4), code(), True),
        (Bound("tensor", least=1, most=3), code(), False),
        (Bound("tensor", least=4), code(), True),
        (Bound("tensor", least=5), code(), False),
        (Bound("spill_bytes", most=0), code(error="ptxas died"), False),
        (Bound("inner_width", least=1, archs=CPUS), cpu_code(), True),
        (Bound("inner_width", least=1, archs=CPUS), cpu_code(vector_bits=512), False),
        (Bound("inner_share", least=0.75, archs=CPUS), cpu_code(), True),
        (Bound("inner_share", least=0.76, archs=CPUS), cpu_code(), False),
        (Bound("inner_gathers", most=1, archs=CPUS), cpu_code(), False),
        (Bound("products", least=32, archs=CPUS), cpu_code(), True),
        (Bound("registers", most=12, archs=CPUS), cpu_code(), False),
    ],
)
def test_bound(bound, kernel, holds):
    op = dataclasses.replace(spec("linear"), bounds=(bound,))
    (verdict,) = hold([op], [SIDE], [kernel])
    assert verdict.checked == 1
    assert (not verdict.broken) == holds


def test_a_bound_speaks_of_some_kernels_alone():
    spoilt = with_counts(spill_bytes=4)
    other = code(kernel="column_sum")

    def verdicts(codes=(spoilt, other), **words):
        op = dataclasses.replace(spec("linear"), bounds=(Bound("spill_bytes", most=0, **words),))
        return [(v.checked, v.extreme, len(v.broken)) for v in hold([op], [SIDE], codes)]

    assert verdicts() == [(2, 4, 1)]
    assert verdicts(kernels=("column_sum",)) == [(1, 0, 0)]
    assert verdicts(kernels=("column_sum", "gone")) == [(1, 0, 1)]
    assert verdicts(dtypes=("float32",)) == []
    assert verdicts(archs=("sm_80",)) == []
    assert verdicts(case="square") == []
    assert verdicts(sides=("neither",)) == []
    assert verdicts([dataclasses.replace(spoilt, case="square")], case="square") == [(1, 4, 1)]


def test_every_bound_is_of_a_number_and_a_case_that_are_there():
    for op in specs().values():
        assert op.bounds
        for bound in op.bounds:
            assert bound.least is not None or bound.most is not None
            (cpu_code() if bound.archs[0] in CPUS else code()).fact(bound.fact)
            inspection.case_of(op, bound.case or None)
    with pytest.raises(AttributeError):
        code().fact("speed")
    cases = {(s.op.name, s.case.name) for s in subjects(list(specs().values()), [SIDE], ["bfloat16"])}
    assert {("cross_entropy", "vocabulary"), ("cross_entropy", "language model"), ("relu", "transformer")} <= cases


def test_source_has_its_counts_beside_it():
    (function,) = source_view.source(code())
    assert [(line.number, line.count) for line in function if line.count] == [(36, 10), (46, 90)]
    assert function[0].text == "@kernel"
    assert source_view.source(code(file="gone.py")) == []


def run(monkeypatch, capsys, *words, columns=80):
    """(exit code, stdout, stderr) of the command with these words, so many columns wide."""
    monkeypatch.setattr(sys, "argv", ["gradlab", "inspect", *words])
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.fixture
def reads(monkeypatch):
    """What the command will read in place of compiling; an exception among it is raised."""
    rows = []

    def read(wanted):
        for row in rows:
            if isinstance(row, BaseException):
                raise row
            yield row

    monkeypatch.setattr(command, "read", read)
    return rows


def test_table_fits_80_columns_and_the_file_holds_every_number(monkeypatch, capsys, reads, tmp_path):
    reads += [
        code(),
        code(
            variant=12,
            direction="backward",
            limiter="shared memory",
            counts=Counts(spill_bytes=123456, instructions=12345),
        ),
    ]
    file = tmp_path / "codes.json"
    status, out, err = run(monkeypatch, capsys, "linear", "--side", SIDE, "--json", str(file))
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert "matmul         forward   116      -   96 K  25% regs      4   20/24   100  7.76" in out
    assert "121 K" in out
    assert "forward: at least 278 µs on H200 (989.4 TFLOP/s, datasheet)" in out
    document = json.loads(file.read_text())
    assert (document["schema"], document["complete"], document["bounds"]) == (1, True, [])
    assert document["machine"]["triton"]
    row = document["kernels"][0]
    assert (row["registers"], row["spill_bytes"], row["lines"], row["grid"]) == (116, 0, {"36": 10, "46": 90}, [2048])
    assert row["indicative"] == (SIDE == "jax")
    assert set(row) >= {f.name for f in dataclasses.fields(Code)} - {"counts"} | {
        f.name for f in dataclasses.fields(Counts)
    }


@pytest.mark.parametrize("columns", [80, 120])
def test_a_cpus_table_fits_its_terminal_and_the_file_holds_every_number(monkeypatch, capsys, reads, tmp_path, columns):
    spilt = dataclasses.replace(cpu_code().inner, spill_bytes=123456, spill_stores=2, scalars=3)
    reads += [
        cpu_code(called=("memcpy", "memset")),
        cpu_code(variant=12, direction="backward", inner=spilt),
        cpu_code(variant=2, error="Unsupported: no"),
    ]
    file = tmp_path / "codes.json"
    words = ("linear", "--side", SIDE, "--arch", "native", "--lines", "--json", str(file))
    status, out, _ = run(monkeypatch, capsys, *words, columns=columns)
    assert status == 1
    table = [line for line in out.splitlines() if not line.startswith("not compiled: ")]
    assert max(map(len, table)) <= columns
    assert f"linear on {SIDE}, float32, native; transformer: " in out
    assert "znver3, vectors of 256 bits\n" in out
    row = "matmul         forward   256     -  537 K  32   12/16    2    6    -   1   729"
    assert (row if columns == 80 else f"{row}   13 3.86 K      512\n") in out
    assert " 121 K " in out
    assert "matmul calls memcpy, memset\n" in out
    assert "    90   46" in out
    assert ("programs" in next(line for line in table if line.startswith("kernel "))) == (columns == 120)
    row = json.loads(file.read_text())["kernels"][0]
    assert (row["vector_bits"], row["called"], row["size"]) == (256, ["memcpy", "memset"], 3953)
    assert (row["instructions"], row["inner"]["instructions"], row["inner"]["fmas"]) == (729, 60, 32)
    assert "lines" not in row["inner"]


def test_lines(monkeypatch, capsys, reads):
    reads.append(code())
    _, out, _ = run(monkeypatch, capsys, "linear", "--side", SIDE, "--lines")
    assert "    90   46" in out
    assert max(map(len, out.splitlines())) <= 80


def test_what_a_first_program_executes_is_beside_the_code(monkeypatch, capsys, reads, tmp_path):
    sums = Totals(56544, 1809408, 0, 134217728, 1024, 524288, 16384, 2048, 1048576, 16384, 8192)
    reads += [
        code(executed=FirstProgram(8, 4, sums, {36: 512, 46: 50000}, 7e4, {"tensor": 512.0, "shared": 640.0}, 8192)),
        code(variant=2),
    ]
    file = tmp_path / "codes.json"
    words = ("linear", "--side", SIDE, "--executed", "--lines", "--json", str(file))
    _, out, _ = run(monkeypatch, capsys, *words)
    assert "matmul         forward      7,068  100%   16  100%    2    134,217,728" in out
    assert "matmul 2       forward          -" in out
    assert "    90   50000   46" in out
    assert max(map(len, out.splitlines())) <= 80
    row, other = json.loads(file.read_text())["kernels"]
    found = row["executed"]
    assert (found["instructions"], found["used"], found["ways"], found["lines"]["36"]) == (7068, 1.0, 2.0, 512)
    assert (found["tensor_share"], found["touched"]) == (0.8, 8192)
    assert other["executed"] is None


def test_a_kernel_that_does_not_compile_is_reported_and_exits_with_1(monkeypatch, capsys, reads):
    reads += [code(error="RuntimeError: ptxas: fatal"), code(variant=2)]
    status, out, _ = run(monkeypatch, capsys, "linear", "--side", SIDE)
    assert status == 1
    assert f"not compiled: linear on {SIDE}, matmul, bfloat16, sm_90: RuntimeError: ptxas: fatal" in out
    assert "matmul 2" in out


def test_a_broken_bound_exits_with_1(monkeypatch, capsys, reads, tmp_path):
    reads += [code(), code(kernel="column_sum", counts=Counts(instructions=9))]
    assert run(monkeypatch, capsys, "linear", "--side", SIDE, "--check")[0] == 0
    reads[0] = with_counts(spill_bytes=12)
    file = tmp_path / "codes.json"
    status, out, _ = run(monkeypatch, capsys, "linear", "--side", SIDE, "--check", "--json", str(file))
    assert status == 1
    assert f"broken: linear on {SIDE}: no spill_bytes: matmul, bfloat16, sm_90: spill_bytes is 12" in out
    assert max(len(line) for line in out.splitlines() if not line.startswith("broken: ")) <= 80
    broken = [p["broken"] for p in json.loads(file.read_text())["bounds"] if p["broken"]]
    assert broken == [["matmul, bfloat16, sm_90: spill_bytes is 12"]]


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_ctrl_c_keeps_what_was_read(monkeypatch, capsys, reads, tmp_path, check):
    reads += [code(), KeyboardInterrupt()]
    file = tmp_path / "codes.json"
    status, out, _ = run(monkeypatch, capsys, "linear", "--side", SIDE, "--json", str(file), *check)
    assert status == 130
    assert "interrupted: 1 kernels read" in out
    assert ("matmul" in out) == (not check)
    document = json.loads(file.read_text())
    assert (document["complete"], len(document["kernels"])) == (False, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["conv9d"], f"op: name is 'conv9d', wanted one of {OPS}"),
        (["relu", "--side", "numpy"], "side: name is 'numpy', wanted one of torch, jax"),
        (["relu", "--arch", "sm_90,sm_9"], "inspect: arch is 'sm_9', wanted one of sm_80, sm_86, sm_89, sm_90, sm_100, gfx942, native, x86-64-v3, sapphirerapids, neoverse-v2"),
        (["relu", "--dtype", "int8"], "inspect: dtype is 'int8', wanted one of float64, float32, float16, bfloat16"),
        (["relu", "--case", "tiny"], "inspect: case is 'tiny', wanted one of one, odd, activations, large, transformer for relu"),
        (["--case", "tiny"], "inspect: case is 'tiny', wanted a case of one of the ops"),
        (["relu", "--gpu", "H300"], "inspect: gpu is 'H300', wanted one of A100, A100-PCIe, A10, L4, H100, H100-PCIe, H200, B200, MI300X"),
        (["relu", "--gpu", "A100", "--arch", "sm_90"], "inspect: gpu is A100 of sm_80, wanted a GPU of sm_90"),
        (["relu", "--json", "/nowhere/x.json"], "inspect: --json is /nowhere/x.json (No such file or directory), wanted a file that can be written"),
        (["relu", "--check", "--arch", "gfx942"], "inspect: no Spec has a bound for gfx942, wanted one of native, neoverse-v2, sapphirerapids, sm_80, sm_90, x86-64-v3"),
        (["relu", "--gpu", "A100", "--arch", "native"], "inspect: gpu is A100 of sm_80, wanted a GPU of native"),
        (["relu", "--json", "/proc/x.json"], "inspect: --json is /proc/x.json (No such file or directory), wanted a file that can be written"),
        (["relu", "--json", "/"], "inspect: --json is the folder /, wanted a file"),
        (["relu", "--check", "--lines"], "inspect: --check came with --case, --gpu, --lines or --executed, wanted none of them: the bounds name their cases"),
    ],
)  # fmt: skip
def test_user_errors_are_one_line_and_exit_with_2(monkeypatch, capsys, words, message):
    assert run(monkeypatch, capsys, *words) == (2, "", f"gradlab: {message}\n")


def test_launches_that_are_not_found_are_one_row_and_break_every_bound(monkeypatch, capsys):
    def lost(subject, device):
        raise RuntimeError("no Triton IR")

    monkeypatch.setattr(inspection, "find", lost)
    status, out, _ = run(monkeypatch, capsys, "relu", "--side", SIDE)
    assert status == 1
    assert f"not compiled: relu on {SIDE}, ?, bfloat16, sm_90: RuntimeError: no Triton IR\n" in out
    status, out, _ = run(
        monkeypatch, capsys, "relu", "--side", SIDE, "--check", "--arch", "sm_90", "--dtype", "bfloat16"
    )
    assert status == 1
    assert "0 of 5 bounds met" in out
    assert "?, bfloat16, sm_90: RuntimeError: no Triton IR" in out


def test_jax_alone_has_nothing_for_amd(monkeypatch, capsys):
    pytest.importorskip("jax")
    status, out, err = run(monkeypatch, capsys, "relu", "--side", "jax", "--arch", "gfx942")
    assert (status, out) == (2, "")
    assert (
        err == "gradlab: inspect: nothing to compile: jax's kernels are lowered for CUDA, wanted an sm_ architecture\n"
    )


def test_jax_alone_has_nothing_for_a_cpu(monkeypatch, capsys):
    pytest.importorskip("jax")
    said = "on a CPU jax's kernels are XLA's code, wanted --side torch or an sm_ architecture"
    status, out, err = run(monkeypatch, capsys, "relu", "--side", "jax", "--arch", "native")
    assert (status, out, err) == (2, "", f"gradlab: inspect: nothing to compile: {said}\n")


def test_llvmlite_that_is_missing_is_one_line(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llvmlite" else real(name))
    status, out, err = run(monkeypatch, capsys, "relu", "--side", SIDE, "--arch", "native,neoverse-v2")
    said = "inspect needs llvmlite, which compiles for native, neoverse-v2: pip install 'gradlab[torch]'"
    assert (status, out, err) == (2, "", f"gradlab: {said}\n")


def test_a_missing_tool_is_one_line(monkeypatch, capsys):
    tools.tool.cache_clear()
    monkeypatch.setattr(tools.Path, "is_file", lambda path: False)
    monkeypatch.setattr(tools.shutil, "which", lambda name: None)
    status, out, err = run(monkeypatch, capsys, "relu", "--side", SIDE)
    tools.tool.cache_clear()
    assert (status, out) == (2, "")
    assert err.startswith("gradlab: inspect needs ptxas, which is neither in Triton's package nor on PATH: ")
    assert err.count("\n") == 1


def test_triton_that_is_missing_is_one_line(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else real(name))
    status, _, err = run(monkeypatch, capsys, "relu", "--side", SIDE)
    assert status == 2
    assert err == "gradlab: inspect needs triton, which compiles the kernels of both sides: pip install triton\n"


def test_a_tool_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"^nvdisasm: "):
        tools.run_tool("nvdisasm", "-c", data=b"no cubin", suffix=".cubin")


@pytest.mark.parametrize(("side", "spares"), [("torch", "jax"), ("jax", "torch")])
def test_one_side_does_without_the_other_framework(side, spares):
    pytest.importorskip(side)
    statement = (
        "import sys; from gradlab.profiling.machine_code.inspection import inspect; "
        f"codes = inspect(['relu'], sides=[{side!r}]); assert codes[0].counts.instructions, codes; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", statement], cwd=inspection.ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert side in loaded
    assert spares not in loaded
