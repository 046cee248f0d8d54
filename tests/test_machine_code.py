"""Every kernel of the lab compiled and held to its Spec's bounds, on a machine that needs no GPU; and spoilt ones."""

import importlib
import re
import subprocess
from dataclasses import replace

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

import triton

from gradlab.autodiff.frameworks.side import installed
from gradlab.kernels.bounds import Bound
from gradlab.kernels.common import elementwise_triton, matmul_triton
from gradlab.kernels.spec import spec, specs
from gradlab.profiling.machine_code import compile_triton, inspection, sass
from gradlab.profiling.machine_code.bounds import hold, subjects
from gradlab.profiling.machine_code.inspection import InspectRequest, choose, find, inspect, read, targets


def verdicts(op, sides, dtype):
    """The op's bounds on sm_90 in one dtype, held against what is compiled now."""
    wanted = InspectRequest(subjects([spec(op)], sides, [dtype]), targets(["sm_90"], None))
    return hold([spec(op)], sides, list(read(wanted)))


def sides():
    """Those whose launches can be found: from jax 0.11 on the program has machine code in it in place of Triton IR."""
    there = installed()
    if "jax" in there and importlib.import_module("jax").__version_info__ >= (0, 11):
        return tuple(side for side in there if side != "jax")
    return there


def broken(op, side, dtype="bfloat16"):
    return [words for verdict in verdicts(op, [side], dtype) for words in verdict.broken]


# The assembler of Triton 3.9 is ptxas 13.4; this is what it breaks of the bounds that ptxas 12 keeps.
PTXAS_13 = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)
NEWER = {"second_backward, bfloat16, sm_90: spill_bytes is 16", "tanh, bfloat16, sm_90: occupancy is 0.625"}


# sm_80 and the other dtypes: `gradlab inspect --check`.
@pytest.mark.parametrize(("op", "dtype"), [*((op, "bfloat16") for op in specs()), ("linear", "float32")])
def test_bounds_hold(op, dtype):
    found = verdicts(op, sides(), dtype)
    assert {v.side for v in found} == set(sides())
    assert all(v.checked for v in found)
    assert {words for v in found for words in v.broken} <= (NEWER if PTXAS_13 else set())
    assert {"atomics", "blocks", "spill_bytes"} <= {v.bound.fact for v in found}


@pytest.mark.parametrize(
    ("op", "dtype", "case"),
    [
        ("linear", "float64", "relu"),
        ("cross_entropy", "float16", "ignored class, weights"),
        ("max_pool2d", "float64", "dilated"),
    ],
)
def test_small_and_odd_sizes_compile_in_every_dtype(op, dtype, case):
    codes = inspect([op], sides=["torch"], dtypes=[dtype], case=case, lines=False)
    assert [code.error for code in codes if code.error] == []
    assert all(code.counts.instructions > 16 and code.registers > 7 for code in codes)


@pytest.fixture
def forward_alone(monkeypatch):
    """From then on only the kernels of the forward are found: what is spoilt on purpose need not be compiled thrice."""
    monkeypatch.setattr(inspection, "find", lambda *of: [f for f in find(*of) if f.direction == "forward"])


def test_a_tile_that_is_too_large_is_caught_and_its_spills_are_what_ptxas_says(monkeypatch, forward_alone):
    def spilling():
        # Of the forward alone the column sum is missing, and bounds on what is executed break too.
        return [words for words in broken("linear", "torch") if "spill_bytes" in words]

    assert spilling() == []
    monkeypatch.setattr(matmul_triton, "tile", lambda what, a, M, K, N: (128, 32, 128, 2, 2))
    (words,) = spilling()
    (subject,), (target,) = choose([spec("linear")], ["torch"], ["bfloat16"], None), targets(["sm_90"], None)
    (code,) = read(InspectRequest((subject,), (target,)))
    ptx = compile_triton.compiled(inspection.find(subject)[0], target).assembly
    machine = re.search(r"\.target (\w+)", ptx).group(1)
    command = [compile_triton.assembler(target), f"--gpu-name={machine}", "-v", "-lineinfo"]
    done = subprocess.run(
        [*command, "-o", "/dev/null", "/dev/stdin"], input=ptx, capture_output=True, text=True, check=True
    )
    stores, loads = map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr).groups())
    assert stores > 100
    # ptxas 12 says what its code has; ptxas 13, which Triton 3.9 brings, 12 bytes more of 15464.
    assert code.counts.spill_bytes == pytest.approx(stores + loads, rel=0.002)
    assert words == f"matmul, bfloat16, sm_90: spill_bytes is {code.counts.spill_bytes}"
    assert code.registers == int(re.search(r"Used (\d+) registers", done.stderr).group(1))


def test_what_the_lab_takes_of_tritons_inside():
    """Its compiler's passes, its assemblers, and its reader of Python: whatever moves in a release is named here."""
    from triton._C.libtriton import ir
    from triton.backends.compiler import Language
    from triton.backends.nvidia import compiler as nvidia
    from triton.compiler import make_backend
    from triton.compiler.code_generator import CodeGenerator

    target = inspection.target("sm_90")
    backend = make_backend(compile_triton.GPUTarget("cuda", 90, 32))
    assert callable(ir.context)
    assert callable(ir.load_dialects)
    assert backend.binary_ext == "cubin"
    passes = {}
    backend.add_stages(passes, backend.parse_options(compile_triton._options(4, 3)), Language.TRITON)
    assert list(passes) == ["ttir", "ttgir", "llir", "ptx", "cubin"]
    assert nvidia.get_ptxas(90).path
    assert compile_triton.assembler(target).is_file()
    assert callable(CodeGenerator.visit)


def test_one_element_a_thread_is_caught(monkeypatch):
    monkeypatch.setattr(elementwise_triton, "block", lambda size, most, least=16: 128 if least == 16 else 1)
    words = broken("relu", "torch")
    assert words == ["relu_mask, bfloat16, sm_90: wide_share is 0"], words


def test_a_product_without_tensor_cores_is_caught(monkeypatch, forward_alone):
    # A sum in place of a dot: right, and slow.
    import triton.language as tl

    from gradlab.kernels.runtime.launch_triton import kernel

    @kernel
    def _matmul_kernel(a_ptr, b_ptr, y_ptr, BM: tl.constexpr):
        i = tl.arange(0, BM)
        a = tl.load(a_ptr + i[:, None] * BM + i[None, :])
        b = tl.load(b_ptr + i[:, None] * BM + i[None, :])
        y = tl.sum(a[:, :, None].to(tl.float32) * b[None, :, :].to(tl.float32), axis=1)
        tl.store(y_ptr + i[:, None] * BM + i[None, :], y.to(y_ptr.dtype.element_ty))

    real = matmul_triton.launch

    def slow(jit, grid, a, *args, writes, **constants):
        if jit is matmul_triton._matmul_kernel:
            return real(_matmul_kernel, [1], a, args[3], writes[0], BM=16, writes=writes)
        return real(jit, grid, a, *args, writes=writes, **constants)

    monkeypatch.setattr(matmul_triton, "launch", slow)
    words = broken("linear", "torch")
    assert "matmul, bfloat16, sm_90: tensor is 0" in words


def test_a_pallas_tile_that_is_too_large_is_caught(monkeypatch):
    jax = pytest.importorskip("jax")
    if "jax" not in sides():
        pytest.skip("no Triton IR to be had")
    from gradlab.kernels.optimizers import step_pallas

    # A program traced before has the right blocks, and one traced now is nobody else's.
    jax.clear_caches()
    real = step_pallas.pallas
    monkeypatch.setattr(step_pallas, "pallas", lambda *args, **options: real(*args, **{**options, "warps": 1}))
    monkeypatch.setattr(inspection, "find", lambda *of: [f for f in find(*of) if f.kernel == "adam_pullback"])
    words = broken("adam", "jax")
    jax.clear_caches()
    assert any(w.startswith("adam_pullback, bfloat16, sm_90: spill_bytes is ") for w in words), words


@pytest.fixture(scope="module")
def lined():
    """relu on every side, and on torch Adam, whose kernel is inlined from another file: with and without lines."""
    asked = [(["relu"], sides()), (["adam"], ["torch"])]
    return [[c for ops, on in asked for c in inspect(ops, sides=on, lines=lines)] for lines in (True, False)]


def test_every_instruction_is_on_a_line_of_its_kernel(lined):
    for code in lined[0]:
        # ptxas 13 has instructions that stand on no line.
        near = pytest.approx(code.counts.instructions, rel=0.1 if PTXAS_13 else 0.0)
        assert sum(code.lines.values()) == near, (code.side, code.name)
        # The sum of a derivative's parts is a kernel that several ops share.
        file = "common/column_sum" if code.kernel == "column_sum" else code.op
        assert code.file == f"gradlab/kernels/{file}_{'triton' if code.side == 'torch' else 'pallas'}.py"
        # Not on the line of its name alone, which is where an operation goes that has none.
        assert sum(n for line, n in code.lines.items() if line != code.line) > 0.5 * code.counts.instructions
    found = next(code for code in lined[0] if code.kernel == "relu_mask")
    text = (inspection.ROOT / found.file).read_text().splitlines()
    wide = [n for n in found.lines if "tile_load(" in text[n - 1] or "tile_store(" in text[n - 1]]
    assert len(wide) == 3


def test_looking_at_lines_changes_no_count(lined):
    for with_lines, without in zip(*lined, strict=True):
        a, b = with_lines.as_json(), without.as_json()
        assert a.pop("lines")
        assert b.pop("lines") == {}
        assert a == b


def test_the_fence_of_a_tensor_map_is_no_atomic_operation():
    text = "\n".join(f"        /*{16 * n:04x}*/                   {name} ;" for n, name in enumerate(FENCED))
    assert sass.count(text).atomics == 1


FENCED = (
    "ATOMG.E.EXCH.STRONG.GPU PT, RZ, [R2], R5",
    "DEPBAR {5,4,3,2,1,0}",
    "UTMACCTL.IV [UR12]",
    "ATOMG.E.EXCH.STRONG.GPU PT, R3, [R2], R5",
)


def test_both_vendors_and_the_newest_architecture(forward_alone):
    codes = inspect(["linear"], sides=["torch"], archs=["sm_100", "gfx942"], case="square")
    codes += inspect(["mse_loss"], sides=["torch"], archs=["gfx942"], case="regression")
    assert {c.arch for c in codes} == {"sm_100", "gfx942"}
    for code in codes:
        assert not code.error
        assert code.counts.spills == 0
        assert bool(code.counts.tensor) == (code.kernel == "matmul"), code
        assert code.counts.loads >= code.counts.wide_loads
        # AMD's prologue stands on no line.
        assert sum(code.lines.values()) >= 0.8 * code.counts.instructions
        assert (code.occupancy is None) == (code.arch == "gfx942")
        assert code.gpu == {"sm_100": "B200", "gfx942": "MI300X"}[code.arch]
        assert 0 < code.floor < 1e-4


def test_the_first_program_of_a_launch_is_executed():
    """A program of one tile: its FLOP are its tile's, and its sectors are read whole."""
    (subject,) = choose([spec("linear")], ["torch"], ["bfloat16"], "square")
    forward = replace(subject, find=lambda: find(subject)[:1])
    request = InspectRequest((forward,), targets(["sm_90"], None))
    (code,) = read(replace(request, executed=True))
    sizes, sums = subject.case.sizes, code.executed.totals
    assert sums.operations * code.grid[0] == 2 * sizes["M"] * sizes["K"] * sizes["N"]
    assert sums.used > 0.99
    assert code.executed.warps * 32 == code.threads
    assert code.executed.lines
    assert set(code.executed.lines) <= set(range(code.line, code.line + 150))
    assert {code.executed for code in read(request)} == {None}


def test_bounds_on_what_is_executed(forward_alone):
    """Of one product and of relu: instructions, cycles of tensor cores, and bytes; a bound that is too tight breaks."""
    linear = (
        Bound("instructions", most=3, per="M K N", case="square"),
        Bound("tensor_share", least=0.5, case="square"),
    )
    relu = (Bound("instructions", least=0.5, most=8, per="E"), Bound("traffic", least=1.0, most=1.0))
    for name, bounds in (("linear", linear), ("relu", relu)):
        ops = [replace(spec(name), bounds=bounds)]
        tight = [replace(spec(name), bounds=tuple(replace(b, least=None, most=0.01) for b in bounds))]
        codes = list(read(InspectRequest(subjects(ops, ["torch"], ["bfloat16"]), targets(["sm_90"], None))))
        assert [v.broken for v in hold(ops, ["torch"], codes)] == [(), ()]
        assert all(v.extreme > 0.01 and len(v.broken) == v.checked for v in hold(tight, ["torch"], codes))
        lost = [replace(code, executed=None) for code in codes]
        assert {words.rpartition(": ")[2] for v in hold(ops, ["torch"], lost) for words in v.broken} == {"not executed"}
