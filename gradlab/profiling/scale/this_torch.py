"""This machine as a Machine, measured: what one process with one thread reaches, and what gloo sends over loopback."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from gradlab.autodiff.frameworks.side_torch import SIDE
from gradlab.base.processes import Job, run_jobs
from gradlab.profiling.bench.ceilings import Ceilings as Measured
from gradlab.profiling.bench.clock import Host
from gradlab.profiling.machine_code.gpus import Ceilings
from gradlab.profiling.scale.devices import Machine
from gradlab.profiling.scale.links import Link

# Bytes of the large all-reduce, and how often each is repeated: the best counts.
LARGE, TURNS = 2**24, 20
# gloo has no reduce-scatter of its own: it adds all of the array on every rank, which sends twice as much.
FACTORS = (("reduce-scatter", 2.0),)
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def machine(dtype: str) -> Machine:
    """Ranks of one thread each on this machine's cores, with gloo between them.

    Raises:
        RuntimeError: a measuring process failed.
    """
    with tempfile.TemporaryDirectory(prefix="gradlab-scale-") as folder:
        store = str(Path(folder) / "store")
        jobs = [Job(f"scale, rank {n}", _rank, (n, 2, store, dtype), env=ENVIRONMENT) for n in range(2)]
        outcomes = run_jobs(jobs)
    for outcome in outcomes:
        if isinstance(outcome, RuntimeError):
            raise outcome
    return outcomes[0]


def _rank(send: Callable[[object], object], rank: int, world: int, store: str, dtype: str) -> Machine:
    torch.set_num_threads(1)
    return ranks(rank, world, store, dtype)


def ranks(rank: int, world: int, store: str, dtype: str) -> Machine:
    """The machine as rank 0 of two finds it; on the other one rates are 1, as it has measured none.

    Args:
        store: a file that is not there yet, by which the ranks meet.
    """
    rate = stream = launch = 1.0
    if rank == 0:
        # While the other rank sleeps, waiting for this one.
        measured = Measured(SIDE, dtype, Host(SIDE.wait))
        rate, stream, launch = measured.rate(), measured.bandwidth(2**30), _launch(dtype)
    dist.init_process_group("gloo", store=dist.FileStore(store, world), rank=rank, world_size=world)
    try:
        small, large = torch.zeros(1), torch.zeros(LARGE // 4)
        # One all-reduce among two is two steps of a ring.
        hop = _best(lambda: dist.all_reduce(small), 10 * TURNS) / 2
        seconds = _best(lambda: dist.all_reduce(large), TURNS)
    finally:
        dist.destroy_process_group()
    link = Link(
        "loopback", LARGE / max(seconds - 2 * hop, 1e-9), hop, hop, 0.0, "gloo over TCP in this machine, measured"
    )
    return _machine(Ceilings({dtype: rate}, stream, "measured, one thread"), link, launch)


def _machine(ceilings: Ceilings, link: Link, launch: float) -> Machine:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine("this machine", ceilings, 0.0, link, link, 2**20, launch, cores, False, FACTORS)


def _launch(dtype: str) -> float:
    """Seconds of a kernel with nothing to do: forward and the three gradients of a linear layer of single numbers."""
    linear = SIDE.op("linear")
    x, w, b = (torch.zeros(s, dtype=getattr(torch, dtype), requires_grad=True) for s in ((1, 1), (1, 1), (1,)))

    def call() -> None:
        linear(x, w, b).sum().backward()

    call()
    return _best(call, 10 * TURNS) / 4


def _best(call: Callable[[], object], turns: int) -> float:
    call()
    seconds = []
    for _ in range(turns):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
