"""Every check case of every op, forward, backward and second, executed as a GPU would: a table for docs/emulate.md.

`python -m tests.sweeps.emulated [torch|jax ...]`
"""

import math
import sys
import time

from gradlab.autodiff.frameworks.side import selected
from gradlab.kernels.spec import specs
from gradlab.profiling.emulate.compare import How, op_case
from gradlab.profiling.machine_code.targets import TARGETS

DTYPES = ("float32", "bfloat16", "float16", "float64")
ARCHS = ("sm_80", "sm_90")


def swept(op, side, dtype, arch):
    """How many results, the largest error in percent of what is allowed, instructions, and what is not right."""
    results = [
        op_case(op.at(case), side, dtype, How(TARGETS[arch], options={"check": True}), second=True)
        for case in op.cases
        if case.use == "check"
    ]
    compared = [c for r in results for c in r.comparisons]
    shares = [c.largest / c.allowed for c in compared if c.allowed]
    instructions = sum(int(launch.executed.counts.issued.sum()) for r in results for launch in r.launches)
    wrong = [(r.case, r.error or [c.what for c in r.comparisons if not c.ok] or "a fault") for r in results if not r.ok]
    return len(compared), max(shares, default=0.0), instructions, wrong


def main(sides):
    for side in selected(sides or None):
        start, total, bad = time.perf_counter(), 0, []
        print(f"\n| {side} | results each | " + " | ".join(f"{d}, {a}" for d in DTYPES for a in ARCHS) + " |")
        print("|---" * (2 + len(DTYPES) * len(ARCHS)) + "|", flush=True)
        for op in specs().values():
            cells, number = [], 0
            for dtype in DTYPES:
                for arch in ARCHS:
                    number, share, instructions, wrong = swept(op, side, dtype, arch)
                    total += instructions
                    bad += [(op.name, dtype, arch, *w) for w in wrong]
                    cells.append("wrong" if wrong or math.isnan(share) else f"{share:.0%}")
            print(f"| {op.name} | {number} | " + " | ".join(cells) + " |", flush=True)
        print(f"\n{total:,} instructions of warps in {time.perf_counter() - start:.0f} s")
        print(*bad, sep="\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
