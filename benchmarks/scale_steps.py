"""Steps of one network on 1, 2 and 4 processes of this machine, measured, beside what `gradlab scale` predicts.

`python benchmarks/scale_steps.py --out FILE` prints tables and writes them as Markdown; --widths and --batch take other
sizes. The machine's rates are measured in the same minute, by what `gradlab scale --gpu this` calls. Where steps differ
from the model, their parts say why: passes and update alone on one process, a step's collectives alone on several.
"""

import itertools
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.markdown import Markdown
from torch.distributed.device_mesh import init_device_mesh

import gradlab.torch as lab
from gradlab.base.files import write_whole
from gradlab.base.machine import describe, stamp
from gradlab.profiling.scale import this_torch
from gradlab.profiling.scale.collective import Collective, total
from gradlab.profiling.scale.collective import seconds as seconds_of
from gradlab.profiling.scale.devices import Machine
from gradlab.profiling.scale.given import of_widths, widths
from gradlab.profiling.scale.layer import Network, Plan, vocabulary_plan
from gradlab.profiling.scale.model import Prediction, predict
from gradlab.profiling.scale.named import machine as machine_of
from gradlab.profiling.scale.strategies import Degrees
from gradlab.profiling.scale.table import seconds, size
from tests.counted_collectives import BY_ROWS, STRATEGIES

WORLDS, TURNS = (1, 2, 4), 20
# Widths and rows of a step that has next to nothing to compute and to send.
TINY = 4
NAMES = ("data", "sharded", "tensor", "vocabulary")
Key = tuple[str, str, int]


def predicted(network: Network, machine: Machine, name: str, world: int, batch: int) -> Prediction:
    """The model's step, split as `tests.counted_collectives` splits: pairs of layers, from the first one on."""
    if name == "vocabulary":
        degrees = Degrees(tensor=world)
        return predict(network, machine, degrees, batch, "float32", vocabulary_plan(network, world))
    split = [layer.name for layer in network.trained]
    pairs = split[: len(split) // 2 * 2] if name == "tensor" and world > 1 else []
    plan = Plan(dict(zip(pairs, itertools.cycle(("columns", "sums")), strict=False)), world)
    return predict(network, machine, Degrees(**{name: world}), batch, "float32", plan)


def best(call: Callable[[], Any]) -> float:
    """The best seconds of a call that all ranks make together."""
    taken = []
    for _ in range(TURNS):
        dist.barrier()
        start = time.perf_counter()
        call()
        dist.barrier()
        taken.append(time.perf_counter() - start)
    return min(taken)


def alone(collectives: list[Collective]) -> Callable[[], None]:
    """The collectives of a step with nothing beside them, one after the other."""
    sizes = [(one.kind, torch.zeros(one.size // 4), torch.zeros(one.size // 4 // one.devices)) for one in collectives]

    def call() -> None:
        for kind, whole, part in sizes:
            if kind == "all-reduce":
                dist.all_reduce(whole)
            elif kind == "all-gather":
                dist.all_gather_into_tensor(whole, part)
            else:
                dist.reduce_scatter_tensor(part, whole)

    return call


def rank_of(rank: int, world: int, folder: str, shape: list[int], batch: int, out: Any) -> None:
    """One rank: best seconds by what was measured, strategy and number of ranks."""
    # Before threads are started, which do as this one does.
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    machine = this_torch.ranks(rank, world, f"{folder}/rates", "float32") if world == 2 else None
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    found: dict[Key, float] = {}
    try:
        mesh = init_device_mesh("cpu", (world,))
        # Alone, a tensor-parallel network is the plain one.
        for name in NAMES if world > 1 else NAMES[:2]:
            step, passes, update = calls(mesh, name, shape, batch)
            found["step", name, world] = best(step)
            if world == 1 and name == "data":
                found["passes", name, world] = best(passes)
                found["update", name, world] = best(update)
            if world > 1:
                sent = predicted(of_widths(joined(shape)), machine_of("H100"), name, world, batch).collectives
                found["collectives", name, world] = best(alone(list(sent)))
            found["tiny", name, world] = best(calls(mesh, name, [TINY] * len(shape), TINY)[0])
        found["barriers", "", world] = best(lambda: None)
    finally:
        dist.destroy_process_group()
    if rank == 0:
        out.put((found, machine))


def calls(mesh: Any, name: str, shape: list[int], batch: int) -> tuple[Callable[[], Any], ...]:
    """A step, its passes, and its update, each called once."""
    torch.manual_seed(0)
    net = STRATEGIES[name](mesh, shape)
    optimizer = lab.Adam(net.parameters(), lr=1e-3)
    rows = batch // mesh.size() if name in BY_ROWS else batch
    # Ranks that have all rows have the same ones.
    x, t = torch.randn(rows, shape[0]), torch.randint(shape[-1], (rows,))

    def passes() -> None:
        net(x, t).backward()

    def step() -> None:
        optimizer.zero_grad()
        passes()
        optimizer.step()

    step()
    return step, passes, optimizer.step


def joined(shape: list[int]) -> str:
    """Widths as text."""
    return "-".join(map(str, shape))


def measured(shape: list[int], batch: int) -> tuple[dict[Key, float], Machine]:
    """Best seconds by what was measured, strategy and number of processes; the machine's rates."""
    context = multiprocessing.get_context("spawn")
    found: dict[Key, float] = {}
    machine = None
    for world in WORLDS:
        with tempfile.TemporaryDirectory() as folder:
            out = context.Queue()
            args = (world, folder, shape, batch, out)
            ranks = [context.Process(target=rank_of, args=(rank, *args)) for rank in range(world)]
            for rank in ranks:
                rank.start()
            try:
                seen, rates = out.get(timeout=300)
                found |= seen
                machine = rates or machine
            finally:
                for rank in ranks:
                    rank.join(timeout=20)
                    rank.kill()
    assert machine is not None
    return found, machine


def engine(machine: Machine, found: dict[Key, float], name: str, world: int, layers: int) -> float:
    """Seconds beyond the model of a step with nearly nothing to do: those of the framework and its engine."""
    tiny = of_widths(joined([TINY] * (layers + 1)))
    return found["tiny", name, world] - predicted(tiny, machine, name, world, TINY).seconds


def step_rows(network: Network, machine: Machine, found: dict[Key, float], batch: int) -> list[list[str]]:
    """A row for each strategy and number of processes."""
    rows = [["strategy", "processes", "predicted", "measured", "ratio", "engine", "ratio with it", "bound by"]]
    for kind, name, world in found:
        if kind == "step":
            want, took = predicted(network, machine, name, world, batch), found[kind, name, world]
            extra = engine(machine, found, name, world, len(network.trained))
            bound = f"{want.bound} {want.parts[want.bound] / want.seconds:.0%}"
            ratios = [f"{took / want.seconds:.2f}", seconds(extra), f"{took / (want.seconds + extra):.2f}", bound]
            rows.append([name, str(world), seconds(want.seconds), seconds(took), *ratios])
    return rows


def part_rows(network: Network, machine: Machine, found: dict[Key, float], batch: int) -> list[list[str]]:
    """A row for each part that was measured alone."""
    rows = [["part", "processes", "predicted", "measured", "ratio", "sent by a device"]]
    whole = predicted(network, machine, "data", 1, batch).seconds
    update = predicted(network, machine, "data", 1, batch).update
    for (kind, name, world), took in found.items():
        if kind == "passes":
            rows.append(_part("forward and backward", world, whole - update, took, ""))
        elif kind == "update":
            rows.append(_part("Adam", world, update, took, ""))
        elif kind == "collectives":
            want = predicted(network, machine, name, world, batch)
            factors = dict(machine.factors)
            spent = total(
                seconds_of(c.kind, c.size * factors.get(c.kind, 1), machine.slowed(world).place(c.devices, 1, world))
                for c in want.collectives
            )
            words = f"{len(want.collectives)} collectives of {name}"
            rows.append(_part(words, world, spent.total, took - found["barriers", "", world], size(want.sent)))
    return rows


def _part(words: str, world: int, want: float, took: float, sent: str) -> list[str]:
    return [words, str(world), seconds(want), seconds(took), f"{took / want:.2f}", sent]


def markdown(rows: list[list[str]]) -> str:
    """A table."""
    head, *rest = rows
    lines = ["| " + " | ".join(row) + " |" for row in rest]
    return "\n".join(["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|", *lines])


def main(
    layers: Annotated[str, typer.Option("--widths", help="Of linear layers.")] = "512-(1024-512)x2-2048",
    batch: Annotated[int, typer.Option(help="Rows of a step in all.")] = 256,
    out: Annotated[Path | None, typer.Option(help="Write the tables to this Markdown file.")] = None,
) -> None:
    """Print measured and predicted seconds."""
    network = of_widths(layers)
    found, machine = measured(widths(layers), batch)
    link = machine.within
    about = (
        f"One thread a process on {machine.cores} cores: {machine.ceilings.rates['float32'] / 1e9:.1f} GFLOP/s and "
        f"{machine.ceilings.bandwidth / 1e9:.1f} GB/s of memory reached by torch, {machine.launch * 1e6:.0f} us a "
        f"launch; gloo over loopback: {link.bandwidth / 1e9:.2f} GB/s in an all-reduce of two, {link.hop * 1e6:.0f} us "
        f"a step of a ring. Best of {TURNS}, between two barriers."
    )
    text = "\n\n".join(
        [
            f"# Steps predicted by `gradlab scale` and measured: {layers}, a batch of {batch}, float32, Adam",
            about,
            markdown(step_rows(network, machine, found, batch)),
            "Engine: a step of tiny layers beyond the model: Python, autograd, hooks of DDP, FSDP2 and DTensor.",
            "Parts alone:",
            markdown(part_rows(network, machine, found, batch)),
            f"`python benchmarks/scale_steps.py --widths '{layers}' --batch {batch}` on {stamp(describe())}",
        ]
    )
    Console(width=120).print(Markdown(text))
    if out is not None:
        write_whole(out, text + "\n")


if __name__ == "__main__":
    typer.run(main)
