"""pytest-benchmark's door to the lab's cases: `pytest benchmarks`. `gradlab bench` is the sharper clock: interleaved.

The ops, cases, inputs and natives are those of `gradlab bench`; a group is one case on one side in one direction.
"""

import pytest

from gradlab.autodiff.side import installed
from gradlab.autodiff.side import side as side_of
from gradlab.kernels.spec import specs
from gradlab.profiling.bench import cases
from gradlab.profiling.bench_row import PASSES
from gradlab.profiling.bench_subject import Subject
from gradlab.profiling.native import natives

pytest.importorskip("pytest_benchmark")

SUBJECTS = [
    (op, case, side) for op in specs().values() for side in map(side_of, installed()) for case in cases(op, side)
]


@pytest.fixture(scope="module", params=SUBJECTS, ids=lambda s: f"{s[0].name}-{s[1].name}-{s[2].name}")
def subject(request):
    op, case, side = request.param
    natives(side.name).forget()
    return Subject(op, case, side, "float32")


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("implementation", ["hand", "native"])
def test_op(benchmark, subject, direction, implementation):
    """Eager; a few rounds each, so that interpreted kernels do not take the day."""
    row = subject.blank("eager", direction)(verdict="")
    benchmark.group = f"{row.op}, {row.case}, {row.side}, {direction}"
    benchmark.extra_info.update(
        op=row.op, case=row.case, sizes=row.sizes, side=row.side, direction=direction, dtype=row.dtype,
        implementation=implementation, native=row.native, flops=row.flops, bytes=row.bytes,
        interpreted=row.interpreted and implementation == "hand",
    )  # fmt: skip
    with subject.precise():
        call = subject.call(implementation, "eager", direction)
        if implementation == "hand":
            assert not subject.difference(call(), direction)
        benchmark.pedantic(lambda: subject.side.wait(call()), rounds=5, iterations=1, warmup_rounds=1)
