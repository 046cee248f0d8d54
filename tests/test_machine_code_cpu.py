"""Kernels assembled for CPUs, this one and others, and held to their Specs' bounds; and spoilt ones."""

import itertools
import re

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("llvmlite")

from gradlab.kernels.common import elementwise_triton
from gradlab.kernels.cpu import lower, machine
from gradlab.kernels.cpu.located import Located
from gradlab.kernels.runtime import launch_triton
from gradlab.kernels.spec import spec, specs
from gradlab.profiling.machine_code import assembly, compile_cpu_triton, inspection
from gradlab.profiling.machine_code.bounds import hold, subjects
from gradlab.profiling.machine_code.inspection import InspectRequest, choose, find, inspect, read
from gradlab.profiling.machine_code.launches_torch import NoValues, cpu_source, every_kernel
from gradlab.profiling.machine_code.targets import TARGETS
from tests import kernel_launches

# What another op launches too is looked at there.
ELSEWHERE = {("column_sum", op) for op in specs() if op != "linear"} | {("matmul", "linear_cross_entropy")}
ARM = "neoverse-v2"


@pytest.fixture
def once(monkeypatch):
    """Of each kernel one variant is compiled."""

    def first(subject, device="cuda"):
        alone = [f for f in find(subject, device) if f.variant == 1]
        return [f for f in alone if (f.kernel, subject.op.name) not in ELSEWHERE]

    monkeypatch.setattr(inspection, "find", first)


def codes_of(op, archs, dtype="float32"):
    """Its kernels, read, and what is broken of its bounds."""
    wanted = InspectRequest(
        subjects([spec(op)], ["torch"], [dtype], archs), inspection.targets(archs, None), size=False
    )
    codes = list(read(wanted))
    verdicts = hold([spec(op)], ["torch"], codes)
    lost = {f"no kernel {kernel!r}" for kernel, elsewhere in ELSEWHERE if elsewhere == op}
    return codes, [words for v in verdicts for words in v.broken if not words.startswith(tuple(lost))]


# Vectors of 256 bits and of 512, on this machine or for one that is not there.
X86 = [
    "native",
    *(name for name in ("x86-64-v3", "sapphirerapids") if TARGETS[name].bits != machine.host().vector_bits),
]


@pytest.mark.parametrize("op", specs())
def test_bounds_hold_here_and_on_cpus_that_are_not_there(op, once):
    archs = [*X86, *([ARM] if op in ("cross_entropy", "linear", "relu") else [])]
    codes, broken = codes_of(op, archs)
    assert broken == []
    assert {c.arch for c in codes} == set(archs)
    for code in codes:
        assert not code.error
        assert code.counts.instructions > code.inner.instructions > 10
        # What the C library does for a kernel is fill memory and copy it.
        assert set(code.called) <= {"memset", "memcpy"}, code.called


def test_products_of_bfloat16_are_amxs_where_it_is_there(once):
    codes, broken = codes_of("linear", ["sapphirerapids"], "bfloat16")
    assert broken == []
    assert next(c for c in codes if c.kernel == "matmul").counts.tensor >= 4


def test_every_kernel_of_the_lab_is_assembled_for_aarch64():
    """One variant of each, as an op's largest case launches it or a call that no case makes."""
    seen = {}
    targets_of_rows = choose([spec("cross_entropy")], ["torch"], ["float32"], "distillation")
    for subject in (*choose(list(specs().values()), ["torch"], ["float32"], None), *targets_of_rows):
        for found in find(subject, "cpu"):
            seen.setdefault(found.source.fn, found.source)
    # What only GPUs are given runs here too, with their tiles.
    for device, call in itertools.product(("cpu", "sm_90"), kernel_launches.CALLS):
        with launch_triton.recording(device) as launches, NoValues():
            call(torch.float32)
        for launch in launches:
            if launch.jit not in seen:
                seen[launch.jit] = cpu_source(launch)
    assert {k for k in every_kernel("cpu") if k.fn.__name__.endswith("_kernel")} <= set(seen)
    for kernel, source in seen.items():
        made = compile_cpu_triton.compiled(source, TARGETS[ARM], size=False)
        found = assembly.read(made.assembly, made.machine.triple, made.machine.vector_bits, lower.NAME)
        # A sum of losses is one number; every other kernel works on vectors.
        assert found.inner.bits == 128 or not found.inner.wide_loads, kernel.fn.__name__
        assert set(found.calls) <= {"memset", "memcpy"}, kernel.fn.__name__
        assert found.counts.atomics == 0


def test_a_loop_on_one_float_at_a_time_is_caught(monkeypatch):
    assert codes_of("relu", ["native"])[1] == []
    monkeypatch.setattr(elementwise_triton, "block", lambda size, most, least=16: 1)
    words = codes_of("relu", ["native"])[1]
    assert any(w.startswith("relu_mask, float32, native: inner_scalars is") for w in words), words
    assert any(w.startswith("relu_mask, float32, native: inner_width is 0") for w in words), words


def test_rows_that_are_no_neighbours_are_caught(monkeypatch, once):
    real = inspection.find

    def strided(subject, device):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty", lambda shape, **how: torch.empty_strided(shape, [2] * len(shape), **how))
            return real(subject, device)

    monkeypatch.setattr(inspection, "find", strided)
    words = codes_of("tanh", ["native"])[1]
    assert any(re.match(r"tanh, float32, native: inner_gathers is [1-9]", w) for w in words), words


@pytest.mark.parametrize(("op", "arch"), [("relu", "native"), ("sigmoid", "sapphirerapids"), ("linear", "neoverse-v2")])
def test_looking_at_lines_changes_no_instruction(op, arch):
    (subject,) = choose([spec(op)], ["torch"], ["float32"], None)
    where = TARGETS[arch]
    target = compile_cpu_triton.machine_of(where)
    for found in find(subject, "cpu")[:2]:
        text = compile_cpu_triton.front(found.source)
        plain, located = (lower.lower(text, target, writing=writing).ir for writing in (None, Located))
        assert machine.object_code(plain, target)
        a, b = (code(machine.read(ir, target, size=False)[0], arch) for ir in (plain, located))
        assert a == b
        assert ".loc" in machine.read(located, target, size=False)[0]


def code(text, arch):
    """Instructions of an assembly, without comments."""
    comment = "//" if arch.startswith("neoverse") else "#"
    return [row.split(comment)[0].strip() for row in text.splitlines() if re.match(r"\t[a-z]", row)]


def test_instructions_stand_on_their_lines():
    codes = inspect(["sigmoid"], sides=["torch"], archs=["native"], dtypes=["float32"])
    for code in codes:
        text = (inspection.ROOT / code.file).read_text().splitlines()
        # What is loaded once in front of all loops, constants and registers that are kept, stands on no line.
        assert 0.65 * code.counts.instructions <= sum(code.lines.values()) <= code.counts.instructions
        assert all(text[line - 1].strip() for line in code.lines)
    sigmoid = next(c for c in codes if c.kernel == "sigmoid")
    text = (inspection.ROOT / sigmoid.file).read_text().splitlines()
    # The store evaluates what it stores, but every operation counts on its own line.
    assert {"tile_load", "tile_store", "tl.exp"} <= {
        w for line in sigmoid.lines for w in re.findall(r"tl\.\w+|tile_\w+", text[line - 1])
    }
    assert sigmoid.size > 500
    assert sigmoid.cpu


def test_a_cpus_tiles_are_what_is_compiled():
    (subject,) = choose([spec("linear")], ["torch"], ["float32"], None)
    ours, theirs = (find(subject, device)[0] for device in ("cpu", "cuda"))
    assert (ours.options["BM"], theirs.options["BM"]) == ("256", "64")
    (noted,) = find(choose([spec("relu")], ["torch"], ["float32"], None)[0], "cpu")
    assert noted.source.attrs == {}


def test_a_process_that_interprets_kernels_compiles_them_to_be_read(monkeypatch):
    monkeypatch.setattr(launch_triton, "_interpreting", True)
    (code,) = inspect(["relu"], sides=["torch"], archs=["native"], dtypes=["float32"], lines=False)
    assert code.counts.instructions
