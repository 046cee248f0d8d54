"""Every Triton kernel of the lab, in every option that launches it, compiled to PTX for sm_80 and sm_90, with no GPU.

What the compiler's front end reads is noted statement by statement: a kernel, or a branch of one that its compile-time
constants choose, that nothing compiles is a failure, whoever forgot the case.
"""

import ast
import re

import pytest

pytest.importorskip("triton")
pytest.importorskip("torch")

from triton.compiler.code_generator import CodeGenerator

from gradlab.profiling.machine_code.compile_triton import begun
from gradlab.profiling.machine_code.launches_torch import every_kernel
from gradlab.profiling.machine_code.targets import TARGETS
from tests import kernel_launches

# bfloat16 meets the newest instructions of the tensor cores on sm_90; float32 and float64 have none or few. Some kernels
# are of half precision alone, some ways of reading of what no descriptor reads.
DTYPES = {"sm_90": ("bfloat16", "float32"), "sm_80": ("float32", "bfloat16", "float64")}
# Each architecture has launches of its own; on this one there is every way that any of them has.
WHOLE = "sm_90"
# Constants that are sizes or dtypes and choose no path; FLAT and LANES are for GPUs, a CPU's other value is compiled for
# CPUs.
SIZES = re.compile("B[A-Z]|TILE|WORDS|ACC|DTYPE|STATE|FLAT|LANES")


def statements(kernel):
    """(line, column) of every statement of a kernel, its docstring apart."""
    (function,) = kernel.parse().body
    nodes = [n for n in ast.walk(function) if isinstance(n, ast.stmt) and n is not function]
    return {place(n) for n in nodes if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))}


def place(node):
    return node.lineno, node.col_offset


@pytest.fixture
def read(monkeypatch):
    """Kernel -> the places of the statements that the compiler's front end read."""
    found, visit, there = {}, CodeGenerator.visit, set(every_kernel())

    def noted(self, node):
        if isinstance(node, ast.stmt) and self.jit_fn in there:
            found.setdefault(self.jit_fn, set()).add(place(node))
        return visit(self, node)

    monkeypatch.setattr(CodeGenerator, "visit", noted)
    return found


def options(variant):
    """What chooses a variant's path through its kernel: the constants that are no sizes; of a float whether it is 0."""
    names, constants = variant.source.fn.arg_names, variant.source.constants
    constexprs = {p.name for p in variant.source.fn.params if p.is_constexpr}
    chosen = {names[i]: value for (i,), value in constants.items() if names[i] in constexprs}
    return {
        name: bool(value) if isinstance(value, float) else str(value)
        for name, value in chosen.items()
        if not SIZES.fullmatch(name)
    }


@pytest.mark.parametrize("arch", DTYPES)
def test_every_statement_of_every_kernel_compiles(arch, read):
    """The front end takes every combination of options, the other passes each option and each statement once.

    In a further dtype what no other has; in float64, whose registers are pairs, every kernel once too.
    """
    there = every_kernel()
    values, begun_with, finished = {}, set(), set()
    for dtype in DTYPES[arch]:
        for variant in kernel_launches.variants(dtype, arch):
            kernel, chosen = variant.source.fn, options(variant)
            each = "float64" if dtype == "float64" else None
            if (kernel, *chosen.items()) in begun_with and (kernel, each) in finished:
                continue
            begun_with.add((kernel, *chosen.items()))
            finish = begun(variant.source, TARGETS[arch], variant.warps, variant.stages)
            parts = {(kernel, option) for option in [each, *chosen.items()]}
            parts |= {(k, at) for k, places in read.items() for at in places}
            if not parts <= finished:
                finished |= parts
                assert ".entry" in finish()
            for name, value in chosen.items():
                values.setdefault((kernel.fn.__name__, name), set()).add(value)
    passed = {kernel for kernel, _ in finished}
    assert {k for k in there if k.fn.__name__.endswith("_kernel")} <= passed
    if arch != WHOLE:
        return
    missing = [
        f"{k.fn.__module__}.{k.fn.__name__}, line {k.fn.__code__.co_firstlineno + line}"
        for k in there
        for line, _ in sorted(statements(k) - read.get(k, set()))
    ]
    assert missing == [], "no case of a Spec and no call of tests/kernel_launches.py compiles these"
    # An option that is always the same has another value, a path that nothing compiles; floats are no switches.
    assert [option for option, two in values.items() if two in ({"True"}, {"False"})] == []
