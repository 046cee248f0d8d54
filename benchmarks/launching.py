"""Microseconds of the host for a launch on CUDA, on any machine: Triton's own way beside the lab's.

`python benchmarks/launching.py --out FILE` launches through Triton's driver and launcher, over a libcuda that runs
nothing (`tests/stub_cuda.py`): what the driver itself takes, and the device, are not in it. Each kernel that an op
launches is launched both ways in turns, and each op is called with both; the processor's time of the fastest of many
rounds counts, as whatever else the machine does only adds.
"""

import functools
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import gradlab.torch as lab
from gradlab.base.files import write_whole
from gradlab.base.machine import describe, stamp
from gradlab.kernels.runtime import cuda_triton
from tests import stub_cuda

CALLS, ROUNDS = 10, 800


def ops() -> dict[str, Callable[[], Any]]:
    """Calls whose kernels have from few arguments to many, forward and backward, small enough to compile quickly."""
    x, w, b = torch.randn(64, 64), torch.randn(64, 64).requires_grad_(), torch.randn(64).requires_grad_()
    leaf, t, dy = torch.randn(64, 64).requires_grad_(), torch.randint(0, 64, (64,)), torch.randn(64, 64)
    image, filters = torch.randn(2, 16, 8, 8).requires_grad_(), torch.randn(16, 16, 3, 3).requires_grad_()
    p, g, m, v = (torch.randn(64, 64) for _ in range(4))
    params = [torch.randn(64, 64).requires_grad_() for _ in range(4)]
    for param in params:
        param.grad = torch.randn(64, 64)
    adam = lab.Adam(params, lr=1e-3)

    def both(y: torch.Tensor) -> None:
        y.backward(torch.empty_like(y) if y.ndim == 0 else y.new_empty(y.shape))

    return {
        "relu": lambda: lab.relu(x),
        "relu, both ways": lambda: lab.relu(leaf).backward(dy),
        "linear": lambda: lab.linear(x, w.detach(), b.detach()),
        "linear, both ways": lambda: lab.linear(leaf, w, b).backward(dy),
        "cross_entropy, both ways": lambda: both(lab.cross_entropy(leaf, t)),
        "conv2d, both ways": lambda: both(lab.conv2d(image, filters, padding=1)),
        "adam_step": lambda: lab.adam_step(p, g, m, v, step=1),
        "Adam.step of 4 tensors": adam.step,
    }


def by_triton(jit: Any, grid: Any, args: Any, written: Any, warps: int, stages: int, constants: Any) -> None:
    """A launch as Triton's users write it."""
    jit[tuple(grid)](*args, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=True)


def fastest(*fns: Callable[[], Any]) -> list[float]:
    """Microseconds of one call of each, in turns."""
    best = [float("inf")] * len(fns)
    for _ in range(ROUNDS):
        for i, fn in enumerate(fns):
            best[i] = min(best[i], timeit.timeit(fn, time.process_time, number=CALLS) / CALLS * 1e6)
    return best


def kernels(calls: dict[str, Callable[[], Any]]) -> list[tuple[str, ...]]:
    """A row for each kernel that the calls launch, by its number of arguments."""
    launches: dict[Any, tuple[Any, ...]] = {}
    run = cuda_triton.run

    def noting(jit: Any, *rest: Any) -> None:
        launches.setdefault(id(jit), (jit, *rest))
        run(jit, *rest)

    cuda_triton.run = noting
    try:
        for call in calls.values():
            call()
    finally:
        cuda_triton.run = run
    rows = []
    for jit, *rest in sorted(launches.values(), key=lambda launch: len(launch[2])):
        for _ in range(2):
            run(jit, *rest)
        theirs, ours = fastest(
            lambda jit=jit, rest=rest: by_triton(jit, *rest), lambda jit=jit, rest=rest: run(jit, *rest)
        )
        count = f"{len(rest[1])} + {len(rest[5])}"
        rows.append((jit.fn.__name__, count, f"{theirs:.1f}", f"{ours:.1f}", f"{theirs / ours:.1f}"))
    return rows


def whole(calls: dict[str, Callable[[], Any]]) -> list[tuple[str, ...]]:
    """A row for each call, with all of its launches and all of its Python."""
    run, rows, counted = cuda_triton.run, [], []

    def counting(*launch: Any) -> None:
        counted.append(1)
        run(*launch)

    def before(call: Callable[[], Any]) -> None:
        cuda_triton.run = by_triton
        try:
            call()
        finally:
            cuda_triton.run = run

    for name, call in calls.items():
        for _ in range(3):
            call()
        counted.clear()
        cuda_triton.run = counting
        call()
        cuda_triton.run = run
        theirs, ours = fastest(functools.partial(before, call), call)
        rows.append((name, str(len(counted)), f"{theirs:.1f}", f"{ours:.1f}", f"{theirs / ours:.2f}"))
    return rows


def main(out: Annotated[Path | None, typer.Option(help="Markdown to write")] = None) -> None:
    """Measure and print."""
    if not stub_cuda.usable():
        raise typer.BadParameter("a GPU is there, or no gcc: the stub of libcuda stands in for a GPU's")
    with stub_cuda.active():
        calls = ops()
        tables = {
            ("kernel", "arguments + constants", "by Triton, us", "by the lab, us", "ratio"): kernels(calls),
            ("call", "launches", "by Triton, us", "by the lab, us", "ratio"): whole(calls),
        }
    foot, text = stamp(describe()), ""
    for head, rows in tables.items():
        table = Table(*head)
        text += f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n"
        for row in rows:
            table.add_row(*row)
            text += f"| {' | '.join(row)} |\n"
        text += "\n"
        Console().print(table)
    print(foot)
    if out is not None:
        write_whole(out, f"{text}{foot}\n")


if __name__ == "__main__":
    typer.run(main)
