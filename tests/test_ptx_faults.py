"""Faults planted in the PTX of compiled kernels: each is found, by its kind, in whichever order the warps run."""

import re
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

import gradlab.torch as lab
from gradlab.kernels.common import matmul_triton
from gradlab.kernels.common.tiles_triton import Tile
from gradlab.kernels.runtime import launch_triton
from gradlab.profiling.emulate.compare import How, function
from gradlab.profiling.emulate.compiled_triton import prepare
from gradlab.profiling.machine_code.targets import TARGETS
from gradlab.profiling.ptx.execute import execute, scratch_memory
from gradlab.profiling.ptx.global_memory import Extent
from gradlab.profiling.ptx.parse import parse
from tests.ptx_kernels import run

ORDERS = ("together", "first", "last")
MODES = [(order, late) for order in ORDERS for late in (True, False)]
RACE, COPY, OPERAND = "race in shared memory", "copy in flight", "shared operand in flight"
FENCE, BYTES, BLANK = "missing proxy fence", "wrong byte count of a barrier", "uninitialised shared memory"
BARRIER, REGISTER, DEADLOCK, OUTSIDE, WRONG = (
    "misused barrier",
    "register in flight",
    "deadlock",
    "out of bounds",
    "wrong result",
)
SIZE = 64


@triton.jit
def _product(a, b, c, k, SIZE: tl.constexpr, SPECIALISED: tl.constexpr):
    m, n = tl.program_id(0) * SIZE, tl.program_id(1) * SIZE
    sums = tl.zeros((SIZE, SIZE), tl.float32)
    for at in tl.range(0, k, SIZE, warp_specialize=SPECIALISED):
        sums = tl.dot(a.load([m, at]), b.load([n, at]).T, sums)
    c.store([m, n], sums.to(tl.bfloat16))


@triton.jit
def _product_of_own_maps(a_ptr, b_ptr, c_ptr, m, n, k, SIZE: tl.constexpr):
    a = tl.make_tensor_descriptor(a_ptr, shape=[m, k], strides=[k, 1], block_shape=[SIZE, SIZE])
    b = tl.make_tensor_descriptor(b_ptr, shape=[n, k], strides=[k, 1], block_shape=[SIZE, SIZE])
    c = tl.make_tensor_descriptor(c_ptr, shape=[m, n], strides=[n, 1], block_shape=[SIZE, SIZE])
    row, column = tl.program_id(0) * SIZE, tl.program_id(1) * SIZE
    sums = tl.zeros((SIZE, SIZE), tl.float32)
    for at in tl.range(0, k, SIZE):
        sums = tl.dot(a.load([row, at]), b.load([column, at]).T, sums)
    c.store([row, column], sums.to(tl.bfloat16))


@dataclass
class Kernel:
    """A compiled kernel, the tensors that it is called with, as they were and as it leaves them."""

    made: object
    grid: tuple[int, int, int]
    tensors: list
    before: list
    after: list

    def run(self, ptx: str, order: str = "together", late: bool = True) -> set[str]:
        """The kinds of what goes wrong."""
        kinds = {fault.kind for fault in self.done(ptx, order, late).faults}
        same = all(torch.equal(t, was) for t, was in zip(self.tensors, self.after, strict=True))
        return kinds if same else kinds | {WRONG}

    def done(self, ptx: str, order: str = "together", late: bool = True):
        """Execute it on the tensors as they were."""
        for tensor, was in zip(self.tensors, self.before, strict=True):
            tensor.copy_(was)
        made = self.made
        scratch = np.zeros(made.scratch * int(np.prod(self.grid)) + 128, np.uint8)
        base = -(-scratch.ctypes.data // 128) * 128
        extents = [*made.extents, Extent(base, scratch.size - 128, "scratch")]
        arguments = [*made.arguments, base]
        program = parse(ptx)
        return execute(
            program,
            self.grid,
            made.threads,
            made.shared,
            arguments[: len(program.parameters)],
            extents,
            made.more,
            order=order,
            late=late,
            check=True,
            detailed=False,
            budget=300_000,
        )


def taken(run, kernel: str, arch: str) -> Kernel:
    """The first launch of a kernel that a function of the lab makes, by pointers: tensor maps have kernels here."""
    notes = []
    want = run()
    with launch_triton.taking(notes.append, "sm_80"):
        run()
    note = next(n for n in notes if kernel in n.jit.fn.__name__)
    options = {**note.constants, "num_warps": note.warps, "num_stages": note.stages, "enable_fp_fusion": True}
    made = prepare(note.jit, note.args, options, TARGETS[arch])
    tensors = [a for a in note.args if isinstance(a, torch.Tensor)]
    grid = (*note.grid, 1, 1)[:3]
    found = Kernel(made, grid, tensors, [t.clone() for t in tensors], [t.clone() for t in tensors])
    found.run(made.ptx)
    found.after = [t.clone() for t in tensors]
    found.holds = (note, want)
    return found


def product(specialised: bool, own: bool = False) -> Kernel:
    a, b = torch.randn(SIZE, 4 * SIZE).bfloat16(), torch.randn(SIZE, 4 * SIZE).bfloat16()
    c = torch.zeros(SIZE, SIZE).bfloat16()
    if own:
        args = (a, b, c, SIZE, SIZE, 4 * SIZE, SIZE)
        made = prepare(_product_of_own_maps, args, {}, TARGETS["sm_90"])
    else:
        maps = [TensorDescriptor.from_tensor(t, [SIZE, SIZE]) for t in (a, b, c)]
        made = prepare(_product, (*maps, 4 * SIZE, SIZE, specialised), {}, TARGETS["sm_90"])
    found = Kernel(made, (1, 1, 1), [a, b, c], [t.clone() for t in (a, b, c)], [])
    found.after = found.before
    found.run(made.ptx)
    found.after = [t.clone() for t in (a, b, c)]
    want = (a.double() @ b.double().T).bfloat16()
    assert (want.double() - c.double()).abs().max() <= 0.01 * want.double().abs().max()
    return found


def linear(arch: str) -> Kernel:
    x, w = torch.randn(SIZE, 4 * SIZE).bfloat16(), torch.randn(SIZE, 4 * SIZE).bfloat16()
    # One tile, whatever a GPU's table says: what is planted is found by its place in the code.
    with mock.patch.object(matmul_triton, "tile", return_value=Tile(SIZE, SIZE, SIZE)):
        return taken(lambda: lab.linear(x, w), "matmul", arch)


def column_sum(arch: str = "sm_90") -> Kernel:
    x, w, b = torch.randn(64, 64), torch.randn(64, 64), torch.randn(64, requires_grad=True)
    return taken(lambda: lab.linear(x, w, b).backward(torch.ones(64, 64)), "column_sum", arch)


def cross_entropy(arch: str = "sm_90") -> Kernel:
    x, t = torch.randn(6, 300), torch.randint(0, 300, (6,))
    return taken(lambda: lab.cross_entropy(x, t), "loss", arch)


MAKERS = {
    "linear sm_80": lambda: linear("sm_80"),
    "linear sm_90": lambda: linear("sm_90"),
    "column_sum": column_sum,
    "cross_entropy": cross_entropy,
    "product": lambda: product(False),
    "product of own maps": lambda: product(False, own=True),
    "product, warps specialised": lambda: product(True),
}
_made: dict[str, Kernel] = {}


def kernel(name: str) -> Kernel:
    if name not in _made:
        torch.manual_seed(0)
        _made[name] = MAKERS[name]()
    return _made[name]


@pytest.mark.parametrize("name", MAKERS)
def test_right_kernels_have_no_fault(name):
    for order, late in MODES:
        assert kernel(name).run(kernel(name).made.ptx, order, late) == set(), (order, late)


@dataclass(frozen=True)
class Plant:
    """A fault: the n-th match of a pattern in a kernel's PTX, replaced; and the kinds by which it may be found."""

    name: str
    kernel: str
    pattern: str
    instead: str
    number: int
    kinds: frozenset[str]

    def ptx(self) -> str:
        """The PTX with the fault."""
        text = kernel(self.kernel).made.ptx
        match = list(re.finditer(self.pattern, text, re.M))[self.number]
        return text[: match.start()] + match.expand(self.instead) + text[match.end() :]


WAIT, BAR = r"cp\.async\.wait_group\s+(\d+);", r"bar\.sync\s+0;"
TRY = r"mbarrier\.try_wait.*;\n.*bra.*;"
COLD, HOT, ONES, MAPS, SPECIAL = (
    "linear sm_80",
    "linear sm_90",
    "product",
    "product of own maps",
    "product, warps specialised",
)
PLANTS = [
    Plant(name, where, pattern, instead, number, frozenset([kinds] if isinstance(kinds, str) else kinds))
    for name, where, pattern, instead, number, kinds in [
        ("wait dropped", COLD, WAIT, "", 0, COPY),
        ("wait too weak", COLD, WAIT, "cp.async.wait_group 3;", 0, COPY),
        ("last wait dropped", COLD, WAIT, "", 1, COPY),
        ("barrier after the wait dropped", COLD, BAR, "", 1, COPY),
        ("barrier before the next copies dropped", COLD, BAR, "", 2, RACE),
        ("barrier before the epilogue dropped", COLD, BAR, "", 3, {COPY, RACE}),
        ("barrier of the epilogue dropped", COLD, BAR, "", 4, RACE),
        ("commit dropped", COLD, r"cp\.async\.commit_group;", "", 4, COPY),
        ("copy too small", COLD, r", 0x10, (%r\d+);", r", 0x8, \1;", 0, BLANK),
        ("copy too small in the loop", COLD, r", 0x10, (%r\d+);", r", 0x8, \1;", 16, WRONG),
        ("copy reads too little", COLD, r", 0x10, (%r\d+);", ", 0x10, 8;", 0, WRONG),
        ("swizzle of ldmatrix", COLD, r"xor\.b32 (.*), 32;", r"xor.b32 \1, 48;", 0, WRONG),
        ("stage of ldmatrix", COLD, r"\+16384\]", "+24576]", 0, {COPY, WRONG}),
        ("offset of ldmatrix", COLD, r"\+4096\]", "+32768]", 0, OUTSIDE),
        ("swizzle of the epilogue", COLD, r"xor\.b32 (.*), 24;", r"xor.b32 \1, 16;", 0, WRONG),
        ("proxy fence dropped", HOT, r"fence\.proxy\.async.*;", "", 0, FENCE),
        (
            "proxy fence before the wait",
            HOT,
            WAIT + r"([\s\S]*?)(fence\.proxy\.async.*;)",
            r"\3 cp.async.wait_group \1; \2",
            0,
            FENCE,
        ),
        ("wait dropped", HOT, WAIT, "", 0, COPY),
        ("wait too weak", HOT, WAIT, "cp.async.wait_group 3;", 0, COPY),
        ("barrier after the wait dropped", HOT, BAR, "", 1, COPY),
        ("barrier before the next copies dropped", HOT, BAR, "", 2, {OPERAND, RACE}),
        ("barrier before the epilogue dropped", HOT, BAR, "", 3, {OPERAND, COPY}),
        ("wait for wgmma dropped", HOT, r"wgmma\.wait_group.*1;", "", 0, OPERAND),
        ("wait for wgmma too weak", HOT, r"wgmma\.wait_group(.*)1;", r"wgmma.wait_group\g<1>2;", 0, OPERAND),
        ("last wait for wgmma dropped", HOT, r"wgmma\.wait_group.*0;", "", 0, {REGISTER, OPERAND}),
        ("fewer bytes expected", ONES, "16384;", "8192;", 0, BYTES),
        ("more bytes expected", ONES, "16384;", "32768;", 0, BYTES),
        ("more bytes expected in the loop", ONES, "16384;", "16400;", 2, BYTES),
        ("phase never changes", ONES, r"xor\.b32 +\t?(%r\d+), \1, (%r\d+);", r"mov.b32 \1, \1;", 0, {COPY, DEADLOCK}),
        ("wrong phase", ONES, r"(mbarrier\.try_wait.*), %r\d+;", r"\1, 1;", 0, {COPY, DEADLOCK}),
        ("more arrivals expected", ONES, r"(mbarrier\.init.*), 1;", r"\1, 2;", 0, DEADLOCK),
        ("arrival dropped", ONES, r"@.*mbarrier\.arrive.*;", "", 2, DEADLOCK),
        ("mbarrier not made", ONES, r"@.*mbarrier\.init.*;", "", 1, BARRIER),
        ("wait for the copies dropped", ONES, TRY, "", 0, COPY),
        ("proxy fence dropped", ONES, r"fence\.proxy\.async.*;", "", 0, FENCE),
        ("wait for the store dropped", ONES, r"cp\.async\.bulk\.wait_group.*;", "", 0, OPERAND),
        ("barrier before the next copies dropped", ONES, BAR, "", 6, {OPERAND, RACE}),
        ("barrier before the store dropped", ONES, BAR, "", 9, RACE),
        ("wait for wgmma dropped", ONES, r"wgmma\.wait_group.*1;", "", 0, OPERAND),
        ("stage of the copies", ONES, r"(setp\.gt\.s32.*), 2;", r"\1, 1;", 1, {OPERAND, DEADLOCK, BYTES, COPY, RACE}),
        ("barrier of another stage", ONES, r"(add\.s32.*), 49152;", r"\1, 49160;", -1, {BARRIER, DEADLOCK, BYTES}),
        ("swizzle of stmatrix", ONES, r"xor\.b32 (.*), 32;", r"xor.b32 \1, 48;", -1, WRONG),
        ("descriptor of an operand", ONES, "4611686293305294850", "4611686293305294852", 0, WRONG),
        ("swizzle of a map", MAPS, r"(swizzle_mode.*)0x3;", r"\g<1>0x2;", 0, WRONG),
        ("box of a map", MAPS, r"(box_dim.*0x1), %r\d+;", r"\1, 32;", 0, BYTES),
        ("map never published", MAPS, r"@.*tensormap\.cp_fenceproxy.*;", "", 1, "wrong tensor map"),
        ("proxy fence after the maps dropped", MAPS, r"fence\.proxy\.async.*;", "", 0, FENCE),
        ("arrival at the empty stage dropped", SPECIAL, r"@.*mbarrier\.arrive\.shared.*;", "", 0, DEADLOCK),
        ("wait for the empty stage dropped", SPECIAL, TRY, "", 0, {RACE, DEADLOCK}),
        (
            "fewer arrivals expected",
            SPECIAL,
            r"(mbarrier\.init.*), 128;",
            r"\1, 64;",
            0,
            {DEADLOCK, RACE, OPERAND, COPY},
        ),
        ("wait for wgmma dropped", SPECIAL, r"wgmma\.wait_group.*;", "", 0, {REGISTER, OPERAND}),
        ("barrier of a warp group", SPECIAL, r"bar\.sync\s+3, 128;", "bar.sync 3, 160;", 0, DEADLOCK),
        ("barrier before the store dropped", SPECIAL, r"bar\.sync\s+3, 128;", "", 1, RACE),
        ("barrier dropped", "column_sum", BAR, "", 1, RACE),
        ("barrier dropped", "column_sum", BAR, "", 2, RACE),
        ("barrier dropped", "column_sum", BAR, "", 3, RACE),
        ("offset of a load", "column_sum", r"ld\.shared\.b32(.*)\+16\]", r"ld.shared.b32\1+2048]", 0, {BLANK, OUTSIDE}),
        ("barrier dropped", "cross_entropy", BAR, "", 1, RACE),
        ("barrier dropped", "cross_entropy", BAR, "", 2, RACE),
        ("barrier dropped", "cross_entropy", BAR, "", 3, RACE),
        ("barrier dropped", "cross_entropy", BAR, "", 5, RACE),
        ("offset of a load", "cross_entropy", r"global_smem\+16\]", "global_smem+128]", 0, {BLANK, OUTSIDE}),
    ]
]


@pytest.mark.parametrize(
    "number", range(len(PLANTS)), ids=lambda n: f"{PLANTS[n].kernel}: {PLANTS[n].name} {PLANTS[n].number}"
)
def test_planted_faults_are_found(number):
    plant = PLANTS[number]
    ptx = plant.ptx()
    for order, late in (MODES[number % 6], MODES[(number + 3) % 6]):
        found = kernel(plant.kernel).run(ptx, order, late)
        assert found & plant.kinds, (order, late, found)


def test_a_fault_says_where():
    text = next(p for p in PLANTS if p.name == "barrier after the wait dropped").ptx()
    done = kernel(COLD).done(text)
    fault = next(f for f in done.faults if f.kind == COPY)
    assert re.search(
        r"byte \d+ of shared memory is read while warp \d \(cp.async.cg, .*product_triton.py:\d+\)", fault.text
    )
    assert fault.text.endswith("its wait, and then a barrier, must come before")
    assert fault.place.file.endswith("product_triton.py")
    assert fault.instruction.startswith("ldmatrix")


@pytest.mark.parametrize("own", [False, True])
def test_descriptors_through_emulate(own):
    a, b = torch.randn(72, 136).bfloat16(), torch.randn(40, 136).bfloat16()

    def matmul(a, b):
        c = torch.empty(72, 40).bfloat16()
        if own:
            _product_of_own_maps[(2, 1)](a, b, c, 72, 40, 136, SIZE)
        else:
            _product[(2, 1)](*(TensorDescriptor.from_tensor(t, [SIZE, SIZE]) for t in (a, b, c)), 136, SIZE, False)
        return c

    result = function(matmul, (a, b), "torch", "matmul", "bfloat16", How(TARGETS["sm_90"], options={"check": True}))
    assert result.error == ""
    assert result.ok, (result.comparisons, [launch.executed.faults for launch in result.launches])
    assert len(result.comparisons) == 3


def test_scratch_memory_begins_where_a_map_may_lie():
    kept = [scratch_memory(384 + n) for n in range(40)]
    assert all(memory.ctypes.data % 128 == 0 for memory in kept)
    assert [memory.size for memory in kept] == [384 + n for n in range(40)]


def shared(body: str, threads: int = 64) -> set[str]:
    """The kinds of faults of a small kernel; %r0 is the thread, %r1 its warp, %r2 its place in shared memory."""
    start = "mov.u32 %r0, %tid.x;\nshr.u32 %r1, %r0, 5;\nmov.b32 %r2, smem;\nmad.lo.u32 %r2, %r0, 4, %r2;\n"
    start += "ld.param.u64 %rd0, [p0];\nsetp.eq.u32 %p1, %r1, 0;\n"
    x = np.arange(256, dtype=np.uint32)
    found = [set(run(start + body, x, threads=threads, shared=1024, check=True, order=o).kinds) for o in ORDERS]
    assert all(kinds == found[0] for kinds in found), found
    return found[0]


def test_lanes_that_write_one_element():
    one = "mov.b32 %r3, smem;\n"
    assert shared(one + "st.shared.b32 [%r3], %r0;") == {RACE}
    assert shared(one + "st.shared.b32 [%r3], %r0;", threads=32) == {RACE}
    assert shared(one + "st.shared.b32 [%r3], %r1;") == {RACE}
    assert shared(one + "st.shared.b32 [%r3], %r1;", threads=32) == set()
    assert shared(one + "st.shared.b32 [%r3], 7;") == set()
    assert shared(one + "@%p1 st.shared.b32 [%r3], 7;\nbar.sync 0;\n@!%p1 st.shared.b32 [%r3], 8;") == set()
    # Bytes of one word are elements of their own.
    assert (
        shared("mov.b32 %r3, smem;\nadd.u32 %r3, %r3, %r0;\ncvt.u16.u32 %rs1, %r0;\nst.shared.b8 [%r3], %rs1;") == set()
    )
    # Two warps, a barrier or none between.
    other = "xor.b32 %r4, %r2, 128;\nst.shared.b32 [%r2], %r0;\n{}ld.shared.b32 %r5, [%r4];\n"
    assert shared(other.format("bar.sync 0;\n")) == set()
    assert RACE in run_all(other.format(""))
    assert shared(other.format("bar.sync 0;\n") + "st.shared.b32 [%r2], %r1;") == {RACE}
    assert shared(other.format("bar.sync 0;\n") + "bar.sync 0;\nst.shared.b32 [%r2], %r1;") == set()


def run_all(body: str) -> set[str]:
    """The kinds that a kernel has in every order: what is read before it is written may be of another kind too."""
    start = "mov.u32 %r0, %tid.x;\nmov.b32 %r2, smem;\nmad.lo.u32 %r2, %r0, 4, %r2;\n"
    x = np.zeros(4, np.uint32)
    found = [set(run(start + body, x, threads=64, shared=1024, check=True, order=order).kinds) for order in ORDERS]
    return set.intersection(*found)


def test_atomics_race_with_others_alone():
    begin = "mov.b32 %r3, smem;\nsetp.eq.u32 %p2, %r0, 0;\n@%p2 st.shared.b32 [%r3], 0;\nbar.sync 0;\n"
    add = "atom.shared.add.u32 %r5, [%r3], 1;\n"
    assert shared(begin + add) == set()
    assert shared(begin + add + "bar.sync 0;\nld.shared.b32 %r6, [%r3];") == set()
    assert shared(begin + add + "ld.shared.b32 %r6, [%r3];") == {RACE}
    assert shared(begin + "@%p1 st.shared.b32 [%r3], 5;\n" + add) == {RACE}
    assert shared("mov.b32 %r3, smem;\n" + add) == {BLANK}


def test_copies_to_one_place():
    copy = "mov.b32 %r3, smem;\nmul.wide.u32 %rd2, {}, 16;\nadd.s64 %rd2, %rd2, %rd0;\n"
    copy += "cp.async.cg.shared.global [%r3], [%rd2], 16;\ncp.async.wait_all;"
    assert shared(copy.format("%r0"), threads=32) == {RACE}
    assert shared(copy.format("%r1"), threads=32) == set()
