"""Ops of the lab on torch: what Triton compiles them to for a GPU, executed on this CPU and held against the CPU's own.

A sample, which takes each op through each dtype; `gradlab emulate` with every dtype and architecture runs all of it.
"""

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from gradlab.kernels.spec import specs
from gradlab.profiling.emulate import executed
from gradlab.profiling.emulate.compare import How, op_case
from gradlab.profiling.machine_code.targets import TARGETS
from gradlab.profiling.ptx.schedule import ORDERS

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
