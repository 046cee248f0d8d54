"""What each rank of `test_counted_torch.py` runs: a step of each strategy, its collectives counted.

    python -m tests.counted_collectives 1,2,4 FOLDER

starts so many ranks, one world after the other. Rank 0 writes FOLDER/<world>.json: what it sent in a step of each
strategy, and, with a network of its own (`unshare --net`), the bytes that loopback carried for all ranks.
"""

import collections
import fcntl
import itertools
import json
import multiprocessing
import os
import socket
import struct
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import gradlab.torch as lab
from gradlab.profiling.scale.counted_torch import Counted

# DDP fills two buckets, FSDP2 has to round shares up (11 rows in 4), and 4 ranks divide what is split.
WIDTHS, BATCH = (514, 1028, 260, 11), 24
# Steps between two looks at loopback.
STEPS = 4
# Says that loopback is this program's alone.
ALONE = "GRADLAB_OWN_NETWORK"


class Net(torch.nn.Module):
    """Linear layers of WIDTHS, a relu in each but the last, and the mean of cross_entropy."""

    def __init__(self, layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x, t):
        for layer in self.layers[:-1]:
            x = lab.relu(layer(x))
        return lab.cross_entropy(self.layers[-1](x), t)


def whole():
    return Net([lab.Linear(k, n) for k, n in itertools.pairwise(WIDTHS)])


def data(mesh):
    """DDP, each rank with its rows of the batch."""
    return DistributedDataParallel(whole()), BATCH // mesh.size()


def sharded(mesh):
    """FSDP2, each layer a unit."""
    net = whole()
    for layer in net.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh), BATCH // mesh.size()


class Enter(torch.autograd.Function):
    """Into layers that are split along columns: the gradient is a sum over ranks."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, dy):
        dy = dy.contiguous()
        dist.all_reduce(dy)
        return dy


class Leave(torch.autograd.Function):
    """Out of a layer that is split along rows: the result is a sum over ranks."""

    @staticmethod
    def forward(ctx, x):
        y = x.clone()
        dist.all_reduce(y)
        return y

    @staticmethod
    def backward(ctx, dy):
        return dy


class Pair(torch.nn.Module):
    """A column's and a row's share of two layers."""

    def __init__(self, k, n, m, parts, first):
        super().__init__()
        self.column, self.row = lab.Linear(k, n // parts), lab.Linear(n // parts, m, bias=False)
        self.bias, self.first = torch.nn.Parameter(torch.zeros(m)), first

    def forward(self, x):
        x = x if self.first else Enter.apply(x)
        return Leave.apply(self.row(lab.relu(self.column(x)))) + self.bias


def tensor(mesh):
    """The first layer by columns, the second by rows, the third whole."""
    first = Pair(*WIDTHS[:3], mesh.size(), True)
    return Net([first, lab.Linear(*WIDTHS[2:])]), BATCH


def tensor_inside(mesh):
    """The first layer whole, so that the pair's input has a gradient."""
    return Net([lab.Linear(*WIDTHS[:2]), Pair(*WIDTHS[1:], mesh.size(), False)]), BATCH


STRATEGIES = (data, sharded, tensor, tensor_inside)


def run(rank, world, folder):
    """All strategies on one rank."""
    store = dist.FileStore(str(folder / f"store{world}"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    found, carried = {}, {}
    try:
        mesh = init_device_mesh("cpu", (world,))
        for strategy in STRATEGIES:
            torch.manual_seed(0)
            net, rows = strategy(mesh)
            x, t = torch.randn(rows, WIDTHS[0]), torch.randint(WIDTHS[-1], (rows,))

            def step(net=net, x=x, t=t):
                net(x, t).backward()

            # DDP fills its buckets anew after the first step.
            step()
            step()
            with Counted() as counted:
                step()
            assert not counted.others, counted.others
            found[strategy.__name__] = list(collections.Counter(counted.collectives).items())
            meet(store, world, strategy.__name__)
            before = carried_bytes()
            meet(store, world, f"{strategy.__name__} before")
            for _ in range(STEPS):
                step()
            meet(store, world, f"{strategy.__name__} after")
            carried[strategy.__name__] = (carried_bytes() - before) / STEPS
            meet(store, world, f"{strategy.__name__} looked")
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
