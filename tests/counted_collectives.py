"""What each rank of `test_counted_torch.py` runs: a step of each strategy, its collectives counted.

    python -m tests.counted_collectives 1,2,4 FOLDER

starts so many ranks, one world after the other. Rank 0 writes FOLDER/<world>.json: what it sent in a step of each
strategy, and, with a network of its own (`unshare --net`), the bytes that loopback carried for all ranks.
"""

import collections
import fcntl
import functools
import itertools
import json
import multiprocessing
import os
import socket
import struct
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import gradlab.torch as lab
from gradlab.profiling.scale.counted_torch import Counted
from gradlab.workloads.catalogue import WORKLOADS
from gradlab.workloads.trainer_torch import Trainer
from gradlab.workloads.world import World

# DDP fills two buckets, FSDP2 has to round shares up (11 rows in 4), and 4 ranks divide what is split.
WIDTHS, BATCH = (514, 1028, 260, 11), 24
# Classes that 4 ranks divide.
CLASSES = 12
WORKLOAD = "digits-cnn"
# Steps between two looks at loopback.
STEPS = 4
# Says that loopback is this program's alone.
ALONE = "GRADLAB_OWN_NETWORK"


class Net(torch.nn.Module):
    """Linear layers of these widths, a relu in each but the last, and the mean of cross_entropy."""

    def __init__(self, widths, group=None):
        super().__init__()
        self.group = group
        self.layers = torch.nn.ModuleList(lab.Linear(k, n) for k, n in itertools.pairwise(widths))

    def forward(self, x, t):
        for layer in self.layers[:-1]:
            x = lab.relu(layer(x))
        return lab.cross_entropy(self.layers[-1](x), t, group=self.group)


def data(mesh, widths):
    """DDP; each rank has its rows of the batch."""
    return DistributedDataParallel(Net(widths))


def sharded(mesh, widths):
    """FSDP2, each layer a unit; each rank has its rows of the batch."""
    net = Net(widths)
    for layer in net.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def tensor(mesh, widths, first=0):
    """Two layers by columns and by rows, and the next two, from the first on; what is left over is whole."""
    net = Net(widths)
    split = net.layers[first:]
    for column, row in zip(split[::2], split[1::2], strict=False):
        parallelize_module(column, mesh, ColwiseParallel())
        parallelize_module(row, mesh, RowwiseParallel())
    return net


def tensor_inside(mesh, widths):
    """The first layer whole, so that the input of the first two that are split has a gradient."""
    return tensor(mesh, widths, 1)


def vocabulary(mesh, widths):
    """The last layer's columns and the classes of the loss."""
    net = Net(widths, mesh.get_group())
    parallelize_module(net.layers[-1], mesh, ColwiseParallel(output_layouts=Shard(-1)))
    return net


STRATEGIES = {f.__name__: f for f in (data, sharded, tensor, tensor_inside, vocabulary)}
# Those that share out the batch.
BY_ROWS = ("data", "sharded")


def call(strategy, mesh):
    """A step of a strategy: forward and backward."""
    rows = BATCH // mesh.size() if strategy.__name__ in BY_ROWS else BATCH
    net = strategy(mesh, (*WIDTHS[:-1], CLASSES) if strategy is vocabulary else WIDTHS)
    # Ranks that have all rows have the same ones.
    x, t = torch.randn(rows, WIDTHS[0]), torch.randint(WIDTHS[-1], (rows,))
    return lambda: net(x, t).backward()


def trained(kind, mesh):
    """A step of `gradlab train` under an engine, its optimizer and the loss of all ranks too."""
    one = WORKLOADS[WORKLOAD]
    world = World(mesh.get_rank(), mesh.size(), mesh.get_rank(), kind)
    trainer = Trainer(one, "gradlab", one.optimizer, "float32", one.network.initial(0), world)
    rng = np.random.default_rng(0)
    rows = one.batch // mesh.size()
    x, t = rng.standard_normal((rows, *one.network.shape), np.float32), rng.integers(10, size=rows)
    return lambda: trainer.step(x, t)


def moved(mesh):
    """A DTensor that is gathered, and one whose terms are added up, to a share and to all of it."""
    whole = torch.ones(BATCH, WIDTHS[-1])
    share = distribute_tensor(whole, mesh, [Shard(0)])
    terms = DTensor.from_local(whole, mesh, [Partial()])
    return lambda: [share.full_tensor(), terms.redistribute(mesh, [Shard(0)]), terms.full_tensor()]


STEPPED = {"moved": moved}
STEPPED |= {name: functools.partial(call, strategy) for name, strategy in STRATEGIES.items()}
STEPPED |= {f"train {kind}": functools.partial(trained, kind) for kind in ("DDP", "FSDP")}


def run(rank, world, folder):
    """All strategies on one rank."""
    store = dist.FileStore(str(folder / f"store{world}"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    found, carried = {}, {}
    try:
        mesh = init_device_mesh("cpu", (world,))
        for name, prepared in STEPPED.items():
            torch.manual_seed(0)
            step = prepared(mesh)
            # DDP fills its buckets anew after the first step.
            step()
            step()
            with Counted() as counted:
                step()
            assert not counted.others, counted.others
            found[name] = list(collections.Counter(counted.collectives).items())
            meet(store, world, name)
            before = carried_bytes()
            meet(store, world, f"{name} before")
            for _ in range(STEPS):
                step()
            meet(store, world, f"{name} after")
            carried[name] = (carried_bytes() - before) / STEPS
            meet(store, world, f"{name} looked")
    finally:
        dist.destroy_process_group()
    if rank == 0:
        counts = {name: [[*vars(one).values(), n] for one, n in counts] for name, counts in found.items()}
        alone = os.environ.get(ALONE)
        (folder / f"{world}.json").write_text(json.dumps({"counted": counts, "carried": carried if alone else None}))


def meet(store, world, name):
    """Every rank waits for the others, by way of a file: nothing of it passes through loopback."""
    store.add(name, 1)
    while store.add(name, 0) < world:
        pass


def carried_bytes():
    """Bytes that loopback has carried since this network began."""
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[9])


def loopback_up():
    """Switch loopback on: a new network has it switched off."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        request = struct.pack("16sh", b"lo", 1)
        fcntl.ioctl(s, 0x8914, request)


def main(worlds, folder):
    """Start the ranks of one world after the other, and end them whatever happens."""
    if os.environ.get(ALONE):
        loopback_up()
    # Everything is imported once; no thread has been started yet.
    context = multiprocessing.get_context("fork")
    for world in worlds:
        ranks = [context.Process(target=run, args=(rank, world, folder)) for rank in range(world)]
        for rank in ranks:
            rank.start()
        try:
            for rank in ranks:
                rank.join(timeout=120)
            if [rank.exitcode for rank in ranks] != [0] * world:
                return 1
        finally:
            for rank in ranks:
                rank.kill()
    return 0


if __name__ == "__main__":
    # torch warns of what its own modules call.
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.exit(main([int(n) for n in sys.argv[1].split(",")], Path(sys.argv[2])))
