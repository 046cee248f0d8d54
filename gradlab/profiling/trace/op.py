"""The profiled process of an op: `python -m gradlab.profiling.trace.op JOB` runs a case of it, forward and backward."""

import importlib
from typing import Any

import numpy as np

from gradlab.autodiff.frameworks.side import side as side_of
from gradlab.kernels.spec import Case, Spec, spec
from gradlab.profiling.trace.step import ProfiledStep, ProfileJob, serve


def cases(op: Spec) -> tuple[str, ...]:
    """The names that a case may have: timed ones first, since the others are too small to show a kernel."""
    ordered = op.select("bench") + op.select("bench gpu") + op.select("check")
    return tuple(dict.fromkeys(case.name for case in ordered))


def named(op: Spec, name: str) -> Case:
    """The case of that name, the first timed one for ""."""
    name = name or cases(op)[0]
    return next(case for case in op.cases if case.name == name)


def step(job: ProfileJob) -> ProfiledStep:
    """The op on float32 arrays of its case, and its pullback for every input that has a gradient."""
    op, side = spec(job.target), side_of(job.side)
    case = named(op, job.case)
    at = op.at(case)
    rng = np.random.default_rng(1)
    inputs = tuple(side.put(a, "float32") for a in at.make().values())
    cotangents = tuple(side.put(np.asarray(rng.standard_normal(shape)), "float32") for shape in at.shapes()[1])
    wrt, fn = list(at.wrt), at.bind(side.op(op.name))
    watch: Any = importlib.import_module(f"gradlab.profiling.trace.traced_{job.side}")
    if job.mode == "jit":
        # In jax the pullback is a function to compile as well.
        pulled = watch.compiled(watch.both(fn, wrt))
    else:
        pulled = watch.both(watch.compiled(fn) if job.mode == "compile" else fn, wrt)

    def program() -> str:
        return pulled.lower(inputs, cotangents).compile().as_text() if job.mode == "jit" else ""

    shown = ", ".join(f"{axis} {n}" for axis, n in case.sizes.items())
    what = f"{op.name}, case {case.name} ({shown}), float32, forward and backward"
    return ProfiledStep(lambda: pulled(inputs, cotangents), side.wait, what, side.interpreted(), program)


if __name__ == "__main__":
    serve(step)
