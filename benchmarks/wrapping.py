"""What the distributed engines cost a single process: a training step wrapped at world size 1 beside the plain one.

`python benchmarks/wrapping.py --out FILE` times the step of a perceptron (forward, backward; 64 - 128 - 10) under DDP,
`fully_shard`, tensor-parallel DTensors and a vocabulary-parallel loss on torch, and under meshes of one device on jax,
with hand-written and with native layers, in turns; it prints the ratios to the plain step and writes them as Markdown.
What an engine costs by itself shows in the native column; what the layers add shows in the difference.
"""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gradlab.autodiff.frameworks.side import installed
from gradlab.autodiff.frameworks.side import side as side_of
from gradlab.base.files import write_whole
from gradlab.base.machine import describe, stamp
from gradlab.profiling.bench.clock import Host, in_turns
from gradlab.profiling.bench.numbers import interval, noise, ratio

K, HIDDEN, V = 64, 128, 10
LAYERS = ("gradlab", "native")
Steps = dict[str, Callable[[], Any]]


def torch_steps(layers: str, rows: int) -> Steps:
    """The plain step, the same again, and the step under each engine."""
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
    from torch.nn.parallel import DistributedDataParallel

    import gradlab.torch as lab

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    x, t = torch.randn(rows, K), torch.randint(0, V, (rows,))
    linear, loss = (lab.Linear, lab.cross_entropy) if layers == "gradlab" else (torch.nn.Linear, F.cross_entropy)

    def network() -> Any:
        relu = lab.ReLU() if layers == "gradlab" else torch.nn.ReLU()
        return torch.nn.Sequential(linear(K, HIDDEN), relu, linear(HIDDEN, V))

    def step(net: Any, loss: Any = loss) -> Any:
        net.zero_grad()
        value = loss(net(x), t)
        value.backward()
        return value

    plain, split = network(), {"0": ColwiseParallel(), "2": RowwiseParallel()}
    steps = {
        "plain": functools.partial(step, plain),
        "plain again": functools.partial(step, plain),
        "DistributedDataParallel": functools.partial(step, DistributedDataParallel(network())),
        "fully_shard": functools.partial(step, fully_shard(network(), mesh=mesh)),
        "ColwiseParallel, RowwiseParallel": functools.partial(step, parallelize_module(network(), mesh, split)),
    }
    if layers == "gradlab":
        parted = functools.partial(lab.cross_entropy, group=dist.group.WORLD)
        steps["vocabulary-parallel loss"] = functools.partial(step, plain, parted)
    return steps


def jax_steps(layers: str, rows: int) -> Steps:
    """The plain step, the same again, and the step on meshes of one device."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    import gradlab.jax as lab

    keys = iter(jax.random.split(jax.random.key(0), 3))
    x, t = jax.random.normal(next(keys), (rows, K)), jnp.arange(rows) % V

    def draw(*shape: int) -> Any:
        return jax.random.normal(next(keys), shape) / shape[0] ** 0.5

    weights = {"w1": draw(K, HIDDEN), "b1": jnp.zeros(HIDDEN), "w2": draw(HIDDEN, V), "b2": jnp.zeros(V)}

    def loss(p: Any, x: Any, t: Any) -> Any:
        if layers == "gradlab":
            return lab.cross_entropy(lab.linear(lab.relu(lab.linear(x, p["w1"], p["b1"])), p["w2"], p["b2"]), t)
        logits = jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, t).mean()

    def on(kind: Any) -> Callable[[], Any]:
        mesh = jax.make_mesh((1,), ("d",), axis_types=(kind,))
        places = (P(), P("d"), P("d"))
        with jax.set_mesh(mesh):
            given = [jax.device_put(a, NamedSharding(mesh, p)) for a, p in zip((weights, x, t), places, strict=True)]
            return functools.partial(jax.jit(jax.value_and_grad(loss)).lower(*given).compile(), *given)

    def mean(p: Any, x: Any, t: Any) -> Any:
        return jax.lax.pmean(loss(p, x, t), "d")

    mesh = jax.make_mesh((1,), ("d",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(mean, mesh=mesh, in_specs=(P(), P("d"), P("d")), out_specs=P())
    plain, manual = (jax.jit(jax.value_and_grad(f)).lower(weights, x, t).compile() for f in (loss, mapped))
    return {
        "plain": functools.partial(plain, weights, x, t),
        "plain again": functools.partial(plain, weights, x, t),
        "jit on an Auto mesh": on(AxisType.Auto),
        "jit on an Explicit mesh": on(AxisType.Explicit),
        "shard_map": functools.partial(manual, weights, x, t),
    }


def measured(side: str, rows: int, seconds: float) -> list[tuple[str, ...]]:
    """A row for each engine: its ratio to the plain step with hand-written and with native layers."""
    wait = side_of(side).wait
    found: dict[str, list[str]] = {}
    for layers in LAYERS:
        steps = {"torch": torch_steps, "jax": jax_steps}[side](layers, rows)
        for step in steps.values():
            wait(step())
        runs = in_turns(list(steps.values()), {"warm": Host(wait)}, wait, seconds)
        times = [runs.samples(i) for i in range(len(steps))]
        for name, samples in zip(steps, times, strict=True):
            if name == "plain":
                cell = f"{interval(samples).median * 1e6:.0f} us"
            elif name == "plain again":
                cell = f"1 within {noise(times[0], samples):.1%}"
            else:
                one = ratio(samples, times[0])
                cell = f"{one.median:.2f} ({one.low:.2f}-{one.high:.2f})"
            found.setdefault(name, [""] * len(LAYERS))[LAYERS.index(layers)] = cell
    return [(side, name, *cells) for name, cells in found.items()]


def main(rows: Annotated[int, typer.Option(help="Rows of the batch.")] = 256,
         seconds: Annotated[float, typer.Option(help="Seconds for each side's layers.")] = 10,
         out: Annotated[Path | None, typer.Option(help="Write the table to this file, as Markdown.")] = None,
         ) -> None:  # fmt: skip
    """Ratios of a step wrapped at world size 1 to the plain one."""
    if rows < 1:
        raise typer.BadParameter(f"rows is {rows}, wanted 1 or more")
    table = Table("side", "engine", *LAYERS, title=f"a step of {rows} rows, {K}-{HIDDEN}-{V}, at world size 1")
    lines = [f"# {table.title}", "", f"| side | engine | {' | '.join(LAYERS)} |", "|---|---|---:|---:|"]
    for side in installed():
        if side == "torch":
            importlib.import_module("torch").set_num_threads(1)
        for row in measured(side, rows, seconds):
            table.add_row(*row)
            lines.append(f"| {' | '.join(row)} |")
    Console().print(table)
    lines += [
        "", "Time over that of the plain step, sampled in turns in one process: median and 95 % interval.", "",
        f"`python benchmarks/wrapping.py --rows {rows} --seconds {seconds:g}` on {stamp(describe())}", "",
    ]  # fmt: skip
    if out is not None:
        write_whole(out, "\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
