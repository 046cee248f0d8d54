"""The profiled process of a workload: `python -m gradlab.workloads.profiled JOB` runs training steps of it."""

import importlib
import itertools
from typing import Any

from gradlab.autodiff.frameworks.side import side as side_of
from gradlab.profiling.trace.step import ProfiledStep, ProfileJob, serve
from gradlab.workloads.catalogue import workload
from gradlab.workloads.workload import batches

# The same batches for every profile; their values do not affect the time.
SEED, EPOCHS = 0, 100


def refuse_unsupported(name: str, modes: dict[str, str]) -> None:
    """Refuse workloads and modes that cannot be profiled.

    Raises:
        ValueError: an unknown workload, one whose data is a file of the user's, or jax without jit.
    """
    one = workload(name)
    if one.file:
        raise ValueError(f"profile: target is {name!r}, which needs {one.file}, wanted a workload that needs no file")
    if modes.get("jax") == "eager":
        raise ValueError(f"profile: mode is 'eager', wanted jit: {name}'s training step is one jitted program on jax")


def step(job: ProfileJob) -> ProfiledStep:
    """One training step with hand-written layers: forward, backward and optimizer, the loss read back."""
    one, side = workload(job.target), side_of(job.side)
    module: Any = importlib.import_module(f"gradlab.workloads.trainer_{job.side}")
    trainer = module.Trainer(one, "gradlab", one.optimizer, "float32", one.network.initial(SEED))
    feed = itertools.cycle(batches(one.load(SEED, None), one.batch, EPOCHS, SEED))
    take = trainer.step
    if job.mode == "compile":
        take = importlib.import_module(f"gradlab.profiling.trace.traced_{job.side}").compiled(take)
    what = f"{job.target}, batches of {one.batch}, float32, one training step"

    def program() -> str:
        return trainer.program(*next(feed))

    return ProfiledStep(lambda: take(*next(feed)), side.wait, what, side.interpreted(), program)


if __name__ == "__main__":
    serve(step)
