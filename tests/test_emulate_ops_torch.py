"""Ops of the lab on torch: what Triton compiles them to for a GPU, executed on this CPU and held against the CPU's own.

A sample, which takes each op through each dtype; `gradlab emulate` with every dtype and architecture runs all of it.
"""

import contextlib

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

import gradlab.torch as lab
from gradlab.kernels.spec import specs
from gradlab.profiling.emulate import executed, launches_torch
from gradlab.profiling.emulate.compare import How, op_case
from gradlab.profiling.emulate.executed import execute_launch
from gradlab.profiling.machine_code.targets import TARGETS
from gradlab.profiling.ptx.execute import execute
from gradlab.profiling.ptx.schedule import ORDERS
from gradlab.profiling.ptx.totals import totals

# Each dtype on one architecture, in one order of warps, its copies landing late or early.
WAYS = [
    ("float32", "sm_90", "last", True),
    ("bfloat16", "sm_90", "first", False),
    ("float16", "sm_80", "together", True),
    ("float64", "sm_80", "last", False),
]


@pytest.mark.parametrize("way", WAYS, ids=lambda w: f"{w[0]}-{w[1]}")
@pytest.mark.parametrize("op", specs().values(), ids=lambda op: op.name)
def test_an_op(op, way):
    dtype, arch, order, late = way
    cases = [case for case in op.cases if case.use == "check"]
    # Another case for each dtype, all of them over some ops.
    at = op.at(cases[(3 * WAYS.index(way) + 1) % len(cases)])
    how = How(TARGETS[arch], options={"order": order, "late": late, "check": True, "exact": late})
    result = op_case(at, "torch", dtype, how, second=True)
    assert result.ok, (at.case.name, result.error, [c for c in result.comparisons if not c.ok], faults(result))
    assert {launch.direction for launch in result.launches} >= {"forward"}


def test_what_an_assembler_does_not_make_right_is_a_fault(monkeypatch):
    op = specs()["linear"]
    (case,) = [c for c in op.cases if c.name == "perceptron"]
    how = How(TARGETS["sm_90"], options={"check": True})
    noted = op_case(op.at(case), "torch", "bfloat16", how)
    monkeypatch.setattr(executed, "serialised", lambda ptx, where: False)
    found = op_case(op.at(case), "torch", "bfloat16", how)
    assert noted.ok
    notes = [note.kind for launch in noted.launches for note in launch.executed.notes]
    assert sorted(f.kind for f in faults(found)) == sorted(notes)
    assert found.ok is not bool(notes)


# A launch each: the norm of the gradients, and a step of Adam and of SGD.
STEPS = {
    "Adam": lambda ps: lab.Adam(ps, lr=0.1, max_norm=0.5, amsgrad=True).step(),
    "SGD": lambda ps: lab.SGD(ps, lr=0.1, momentum=0.9).step(),
    "clip_grad_norm_": lambda ps: lab.clip_grad_norm_(ps, 0.1),
}


def parameters(sizes, offset=0):
    """Parameters in bfloat16 with gradients; of the first, both lie so many elements past an aligned address."""
    made = torch.Generator().manual_seed(0)
    ps = []
    for size in sizes:
        p, g = (torch.randn(size + offset, generator=made).bfloat16()[offset:] for _ in range(2))
        ps.append(torch.nn.Parameter(p))
        ps[-1].grad = g
        offset = 0
    return ps


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_a_step_of_several_tensors(name, arch):
    """Whole and partial chunks, of aligned tensors and of one that is not: as on the CPU, and without a fault."""
    ours, theirs = (parameters((2048, 5, 2048, 4100), 1) for _ in range(2))
    found = []

    def run(launch):
        found.append(execute_launch(launch, TARGETS[arch], "torch", "forward", 10**6, {"check": True}))

    with launches_torch.emulated(TARGETS[arch], run):
        STEPS[name](ours)
    STEPS[name](theirs)
    assert [launch.executed.faults for launch in found] == [[]] * len(found)
    for p, q in zip(ours, theirs, strict=True):
        # The two square roots and quotients differ by an ulp of float32, a rounding of the result.
        torch.testing.assert_close(p, q, rtol=2**-8, atol=0)
        torch.testing.assert_close(p.grad, q.grad, rtol=2**-8, atol=0)


def test_a_chunk_takes_as_many_instructions_whatever_the_number_of_tensors():
    counts = {}

    def run(launch):
        made, program = launch.made, executed.parsed(launch.made.ptx)
        given = [*made.arguments, 0, 0][: len(program.parameters)]
        options = {"budget": 10**5, "blocks": 1}
        done = execute(program, launch.grid, made.threads, made.shared, given, made.extents, made.more, **options)
        if launch.kernel != "clip":
            counts.setdefault(launch.kernel, []).append(totals(done.counts))

    for T in (1, 10, 1000):
        ps = parameters([2048] * T)
        with launches_torch.emulated(TARGETS["sm_90"], run):
            for step in STEPS.values():
                step(ps)
    # One tensor has kernels of its own.
    assert sorted(counts) == sorted(f"{k}{of}" for k in ("adam", "sgd", "squares", "scale") for of in ("", "_many"))
    # Arrays read and written; SGD's first step writes its buffer alone.
    for kernel, arrays, factor in (("adam", 9, 1), ("sgd", 4, 0), ("scale", 2, 1)):
        (one,), (ten, thousand) = counts[kernel], counts[f"{kernel}_many"]
        assert ten.issued == thousand.issued
        # The words of a row, once a warp: 8 of them, of 256 elements each.
        assert one.issued < ten.issued <= one.issued + 8 * 70
        # A warp moves 16 bytes a lane, its share of each array in one request; and one word for the factor.
        assert one.requests == 8 * (arrays + factor)


EDGES = {
    "relu": (lambda x, t: lab.relu(x), lambda x, t: torch.relu(x)),
    "sigmoid": (lambda x, t: lab.sigmoid(x), lambda x, t: torch.sigmoid(x)),
    "mse_loss": (lab.mse_loss, torch.nn.functional.mse_loss),
    "binary_cross_entropy_with_logits": (
        lab.binary_cross_entropy_with_logits,
        torch.nn.functional.binary_cross_entropy_with_logits,
    ),
}


@pytest.mark.parametrize("name", EDGES)
def test_an_edge_within_a_vector(name):
    """The last element of an odd size is there and the next is not, and whole tiles move 16 bytes a lane."""
    made = torch.Generator().manual_seed(0)
    x, t = torch.randn(4097, generator=made).requires_grad_(), torch.rand(4097, generator=made)
    found = []

    def run(launch):
        found.append(execute_launch(launch, TARGETS["sm_90"], "torch", "forward", 10**6, {"check": True}))

    (ours, theirs), grads = EDGES[name], []
    for fn, how in ((ours, launches_torch.emulated(TARGETS["sm_90"], run)), (theirs, contextlib.nullcontext())):
        with how:
            y = fn(x, t)
            grads.append((y.detach(), *torch.autograd.grad(y, x, torch.ones_like(y))))
    torch.testing.assert_close(*grads)
    assert [launch.executed.faults for launch in found] == [[]] * len(found)
    backward = totals(found[-1].executed.counts)
    # Two programs: 4096 elements in 16 bytes a lane, and one element.
    assert backward.requests < 2 * 4097 * 4 * 3 / (16 * 32)


def faults(result):
    return [fault for launch in result.launches for fault in launch.executed.faults]


@pytest.mark.parametrize("order", ORDERS)
def test_pipelines_of_several_stages(order):
    """A product with tensor cores that reads shared memory while copies into it are on their way."""
    (case,) = [c for c in specs()["linear"].cases if c.name == "perceptron"]
    at = specs()["linear"].at(case)
    result = op_case(at, "torch", "bfloat16", How(TARGETS["sm_90"], options={"order": order, "check": True}))
    assert result.ok, (result.error, [c for c in result.comparisons if not c.ok], faults(result))
    assert sum(int(launch.executed.counts.operations.sum()) for launch in result.launches) > 10**6
    assert max(launch.executed.counts.in_flight for launch in result.launches) > 2**15
    # Triton 3.7 lets the last wgmma of a turn read registers that the next one writes (triton-lang/triton issue 9433).
    # ptxas sees that and lets none overlap, so that it is no fault; where Triton has mended it, there is nothing.
    notes = {note.kind for launch in result.launches for note in launch.executed.notes}
    assert notes <= {"register in flight"}
