"""pytest-benchmark's door to the lab's cases: `pytest benchmarks`. `gradlab bench` is the sharper clock: interleaved.

The ops, cases and natives are those of `gradlab bench`; a group is one case on one side in one direction.
"""

import pytest

from gradlab.autodiff.frameworks.side import installed
from gradlab.autodiff.frameworks.side import side as side_of
from gradlab.kernels.spec import specs
from gradlab.profiling.bench.row import EAGER, GRADLAB, NATIVE, PASSES
from gradlab.profiling.bench.subject import Subject
from gradlab.profiling.bench.worker import cases
from gradlab.profiling.native.native import natives

pytest.importorskip("pytest_benchmark")

SUBJECTS = [
    (op, case, side)
    for op in specs().values()
    for side in map(side_of, installed())
    for case in cases(op, side.device())
]


@pytest.fixture(scope="module", params=SUBJECTS, ids=lambda s: f"{s[0].name}-{s[1].name}-{s[2].name}")
def subject(request):
    op, case, side = request.param
    natives(side.name).forget()
    return Subject(op, case, side, "float32", seed=0)


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("implementation", [GRADLAB, NATIVE])
def test_op(benchmark, subject, direction, implementation):
    """Eager; a few rounds each, so that Triton's interpreter (`GRADLAB_CPU=interpret`) does not take the day."""
    op, case, side = subject.op, subject.case, subject.side
    flops, moved = subject.work(direction)
    benchmark.group = f"{op.name}, {case.name}, {side.name}, {direction}"
    with subject.precise():
        call = subject.call(implementation, EAGER, direction)
        assert not subject.difference(call(), direction)
        benchmark.pedantic(lambda: side.wait(call()), rounds=5, iterations=1, warmup_rounds=1)
    interpreted = side.interpreted() and implementation == GRADLAB
    benchmark.extra_info.update(
        op=op.name, case=case.name, sizes=dict(case.sizes), side=side.name, direction=direction, dtype=subject.dtype,
        implementation=implementation, function=subject.implementations[implementation].label, flops=flops, bytes=moved,
        interpreted=interpreted,
    )  # fmt: skip
    # Interpreted, a rate would be nobody's; with --benchmark-disable there is no time.
    if benchmark.stats and not interpreted:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info.update(gbytes_per_second=moved / seconds / 1e9, gflops_per_second=flops / seconds / 1e9)
