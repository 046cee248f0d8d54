"""Every check case of every op on jax, through its programs for CUDA, sanitized: no fault, and right values.

`python -m tests.sweeps.pallas_cuda_jax [dtype | mapped ...]`; `mapped` is every case under `jax.vmap`, in float32.
"""

import sys
import time
from contextlib import nullcontext

import jax
import numpy as np

import gradlab
from gradlab.autodiff.frameworks.side_jax import SIDE
from gradlab.profiling.machine_code.found import passes
from tests.several_programs import OPS

DTYPES = ("float32", "float16", "bfloat16", "float64")


def drawn(op, case, dtype):
    """Inputs, cotangents of the results, cotangents of the gradients."""
    at, random = op.at(case), np.random.default_rng(1)
    return [
        [SIDE.put(np.asarray(a), dtype) for a in group]
        for group in (at.make().values(), *([random.standard_normal(s) for s in g] for g in at.shapes()[1:]))
    ]


def results(op, case, given, jit=lambda fn: fn):
    """(pass, results) for forward, backward and second backward, in float64."""
    return [(name, [np.asarray(y, np.float64) for y in jit(run)(*given)]) for name, run in passes(op.at(case), SIDE)]


def mapped(op, case, given):
    """As `results`, under `jax.vmap` over what was drawn and the same the other way round."""
    many = [[np.stack([x, np.flip(x)]) for x in map(np.asarray, group)] for group in given]
    named = passes(op.at(case), SIDE)
    return [(name, [np.asarray(y, np.float64) for y in jax.jit(jax.vmap(run))(*many)]) for name, run in named]


def error(got, want):
    """The largest difference, in shares of the largest number of its array."""
    worst = 0.0
    for (_, ours), (_, theirs) in zip(got, want, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            finite = np.isfinite(b)
            scale = max(1.0, np.abs(b).max(initial=0.0, where=finite))
            if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
                return np.inf
            worst = max(worst, float(np.abs(a - b).max(initial=0.0, where=finite)) / scale)
    return worst


def main(kinds):
    """A line for each dtype and op, and the faults."""
    for kind in kinds:
        run, dtype = (mapped, "float32") if kind == "mapped" else (results, kind)
        for name, op in OPS.items():
            start, worst, launches, faults, cases = time.perf_counter(), 0.0, 0, [], op.select("check")
            for case in cases:
                with SIDE.double() if dtype == "float64" else nullcontext():
                    given = drawn(op, case, dtype)
                    want = run(op, case, given)
                    with gradlab.sanitize(raises=False) as report:
                        got = run(op, case, given)
                found = error(got, want) / op.at(case).tolerance(dtype)
                if found > 4:
                    print(f"    {case}: {found:.2f} tolerances")
                worst = max(worst, found)
                launches += report.pallas
                faults += [] if report else [str(report)]
            seconds = time.perf_counter() - start
            print(
                f"{kind:9} {name:34} {len(cases):3} cases {launches:5} launches {len(faults):3} with faults, "
                f"error {worst:.2f} of the tolerance, {seconds:.0f} s",
                flush=True,
            )
            for text in faults[:3]:
                print(text)
            jax.clear_caches()


if __name__ == "__main__":
    main(sys.argv[1:] or DTYPES)
