"""Every kernel of the lab compiled and held to its Spec's promises, on a machine that needs no GPU; and spoilt ones."""

import importlib
import re

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from triton.runtime.jit import JITFunction

from gradlab.autodiff.side import installed
from gradlab.kernels import elementwise_triton, linear_triton
from gradlab.kernels.spec import spec, specs
from gradlab.profiling.machine_code import compile_triton
from gradlab.profiling.machine_code.inspection import Wanted, choose, find, inspect, read, targets
from gradlab.profiling.machine_code.promises import hold, subjects
from gradlab.profiling.machine_code.tools import say


def verdicts(op, sides, dtype):
    """The op's promises on sm_90 in one dtype, held against what is compiled now."""
    wanted = Wanted(subjects([spec(op)], sides, [dtype]), targets(["sm_90"], None))
    return hold([spec(op)], sides, list(read(wanted)))


def broken(op, side, dtype="bfloat16"):
    return [words for verdict in verdicts(op, [side], dtype) for words in verdict.broken]


# sm_80 and the other dtypes: `gradlab inspect --check`.
@pytest.mark.parametrize(("op", "dtype"), [*((op, "bfloat16") for op in specs()), ("linear", "float32")])
def test_promises_are_kept(op, dtype):
    found = verdicts(op, installed(), dtype)
    assert {v.side for v in found} == set(installed())
    assert all(v.held for v in found)
    assert [words for v in found for words in v.broken] == []
    assert {"atomics", "blocks", "spill_bytes"} <= {v.promise.fact for v in found}


def test_no_kernel_is_left_out():
    modules = [importlib.import_module(f"gradlab.kernels.{name}_triton") for name in specs()]
    there = {k for m in [*modules, elementwise_triton] for k, v in vars(m).items() if isinstance(v, JITFunction)}
    found = {f.kernel for s in choose(list(specs().values()), ["torch"], ["float32"], None) for f in find(s)}
    assert found == {k.strip("_").removesuffix("_kernel") for k in there if k.endswith("_kernel")}


@pytest.mark.parametrize(
    ("op", "dtype", "case"),
    [("linear", "float64", "relu"), ("linear", "float16", "odd"), ("cross_entropy", "float64", "ignored class"),
     ("conv2d", "float16", "groups"), ("max_pool2d", "float64", "dilated"), ("adam", "float64", "odd")],
)  # fmt: skip
def test_small_and_odd_sizes_compile_in_every_dtype(op, dtype, case):
    codes = inspect([op], sides=["torch"], dtypes=[dtype], case=case, lines=False)
    assert [code.error for code in codes if code.error] == []
    assert all(code.counts.instructions > 16 and code.registers > 7 for code in codes)


def test_a_tile_that_is_too_large_is_caught(monkeypatch):
    assert broken("linear", "torch") == []
    monkeypatch.setattr(linear_triton, "_tile", lambda a, M, K, N: (256, 64, 256, 4, 2))
    words = broken("linear", "torch")
    assert any(re.fullmatch(r"product, bfloat16, sm_90: spill_bytes is \d{3,}", w) for w in words), words


def test_one_element_a_thread_is_caught(monkeypatch):
    monkeypatch.setattr(elementwise_triton, "block", lambda size, most, least=16: 128 if most > 1 else 1)
    words = broken("relu", "torch")
    assert words == ["gate, bfloat16, sm_90: wide_share is 0"], words


def test_a_product_without_tensor_cores_is_caught(monkeypatch):
    # A sum in place of a dot: right, and slow.
    import triton.language as tl

    from gradlab.kernels.launch_triton import kernel

    @kernel
    def _product_kernel(a_ptr, b_ptr, y_ptr, BM: tl.constexpr):
        i = tl.arange(0, BM)
        a = tl.load(a_ptr + i[:, None] * BM + i[None, :])
        b = tl.load(b_ptr + i[:, None] * BM + i[None, :])
        y = tl.sum(a[:, :, None].to(tl.float32) * b[None, :, :].to(tl.float32), axis=1)
        tl.store(y_ptr + i[:, None] * BM + i[None, :], y.to(y_ptr.dtype.element_ty))

    real = linear_triton.launch

    def slow(jit, grid, a, *args, writes, **constants):
        if jit is linear_triton._product_kernel:
            return real(_product_kernel, [1], a, args[3], writes[0], BM=16, writes=writes)
        return real(jit, grid, a, *args, writes=writes, **constants)

    monkeypatch.setattr(linear_triton, "launch", slow)
    words = broken("linear", "torch")
    assert "product, bfloat16, sm_90: tensor is 0" in words


def test_a_renamed_kernel_breaks_what_is_promised_of_it(monkeypatch):
    monkeypatch.setattr(elementwise_triton._times_kernel.fn, "__name__", "_multiply_kernel")
    assert broken("tanh", "torch") == ["no kernel 'times'; there are tanh, slope, multiply"]


def test_a_pallas_tile_that_is_too_large_is_caught(monkeypatch):
    jax = pytest.importorskip("jax")
    from gradlab.kernels import step_pallas

    # A program traced before has the right blocks, and one traced now is nobody else's.
    jax.clear_caches()
    real = step_pallas.pallas
    monkeypatch.setattr(step_pallas, "pallas", lambda *args, **options: real(*args, **{**options, "warps": 1}))
    words = broken("adam", "jax")
    jax.clear_caches()
    assert any(w.startswith("adam_pullback, bfloat16, sm_90: spill_bytes is ") for w in words), words


def test_spills_are_what_ptxas_says(monkeypatch):
    monkeypatch.setattr(linear_triton, "_tile", lambda a, M, K, N: (256, 64, 256, 4, 2))
    (subject,) = choose([spec("linear")], ["torch"], ["bfloat16"], None)
    (target,) = targets(["sm_90"], None)
    found = find(subject)[0]
    ptx = compile_triton.compiled(found, target).assembly
    code = next(read(Wanted((subject,), (target,))))
    machine = re.search(r"\.target\s+(\w+)", ptx).group(1)
    command = [f"--gpu-name={machine}", "-v", "-lineinfo"]
    # ptxas says it on standard error, which a tool's answer leaves out.
    import subprocess

    from gradlab.profiling.machine_code.tools import tool

    done = subprocess.run(
        [tool("ptxas"), *command, "-o", "/dev/null", "/dev/stdin"],
        input=ptx,
        capture_output=True,
        text=True,
        check=True,
    )
    stores, loads = map(int, re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr).groups())
    assert stores > 100
    assert code.counts.spill_bytes == stores + loads
    registers = re.search(r"Used (\d+) registers", done.stderr)
    assert code.registers == int(registers.group(1))
    assert isinstance(
        say("cuobjdump", "-res-usage", data=compile_triton.compiled(found, target).code, suffix=".cubin"), str
    )


@pytest.fixture(scope="module")
def lined():
    """relu and Adam, whose kernel is inlined from another file, with and without lines; on every side."""
    return [inspect(["relu", "adam"], lines=lines) for lines in (True, False)]


def test_every_instruction_is_on_a_line_of_its_kernel(lined):
    for code in lined[0]:
        assert sum(code.lines.values()) == code.counts.instructions, (code.side, code.name)
        assert code.file == f"gradlab/kernels/{code.op}_{'triton' if code.side == 'torch' else 'pallas'}.py"
        assert min(code.lines) >= code.line or code.kernel == "adam"
    gate = next(code for code in lined[0] if code.kernel == "gate")
    text = open(gate.file).read().splitlines()
    wide = [n for n in gate.lines if "tl.load" in text[n - 1] or "tl.store" in text[n - 1]]
    assert len(wide) == 3


def test_looking_at_lines_changes_no_count(lined):
    for with_lines, without in zip(*lined, strict=True):
        a, b = with_lines.as_json(), without.as_json()
        assert a.pop("lines")
        assert b.pop("lines") == {}
        assert a == b


def test_both_vendors_and_the_newest_architecture():
    codes = inspect(["linear"], sides=["torch"], archs=["sm_100", "gfx942"], case="square")
    assert {c.arch for c in codes} == {"sm_100", "gfx942"}
    for code in codes:
        assert not code.error
        assert code.counts.spills == 0
        assert bool(code.counts.tensor) == (code.kernel == "product"), code
        assert code.counts.loads >= code.counts.wide_loads
        assert sum(code.lines.values()) == code.counts.instructions
        assert (code.occupancy is None) == (code.arch == "gfx942")
        assert code.gpu == {"sm_100": "B200", "gfx942": "MI300X"}[code.arch]
        assert 0 < code.floor < 1e-4 if code.direction != "second" else code.floor is None
