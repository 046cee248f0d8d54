"""Processes that stand for devices, and layers on DTensors compared with whole tensors and with torch's own layers.

`python -m tests.sharded WORLD STORE` forks that many ranks, which talk over loopback and run every part of
`sharded_ops.py`, `sharded_modules.py` and `sharded_optimizers.py`; it exits with 0 if all pass.
"""

import importlib
import math
import os
import sys
import traceback
import warnings

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

R = Replicate()


class Moved(TorchDispatchMode):
    """Counts collectives and the bytes of what they return."""

    def __init__(self):
        super().__init__()
        self.calls, self.bytes = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("_c10d_functional", "c10d") and not func.__name__.startswith(("wait", "_wrap")):
            self.calls += 1
            self.bytes += sum(t.nbytes for t in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(t))
        return result


def spread(t, mesh, places):
    """The tensor, the same on all ranks, as a DTensor; of a sum each rank has its share."""
    if not any(p.is_partial() for p in places):
        return distribute_tensor(t, mesh, places, src_data_rank=None)
    shares = math.prod(n for n, p in zip(mesh.shape, places, strict=True) if p.is_partial())
    return DTensor.from_local(t / shares, mesh, places)


def whole(t):
    return t.full_tensor() if isinstance(t, DTensor) else t


def derivatives(f, tensors, back, second=True):
    """The result, its gradients, theirs, and what was moved forward and backward; `back` draws the cotangent."""
    tensors = [t.requires_grad_() if t.is_floating_point() else t for t in tensors]
    wrt = [t for t in tensors if t.requires_grad]
    with Moved() as forward:
        y = f(*tensors)
    u = back(y).requires_grad_(second)
    with Moved() as backward:
        grads = torch.autograd.grad(y, wrt, u, create_graph=second)
    twice = ()
    if second:
        total = sum(whole(g).sin().sum() for g in grads)
        wrt = [*wrt, u]
        twice = torch.autograd.grad(total, wrt, allow_unused=True)
        # What no derivative comes to may be None on one side and zeros on the other.
        twice = [torch.zeros_like(whole(t)) if g is None else g for t, g in zip(wrt, twice, strict=True)]
    return [y, *grads, *twice], forward, backward


def compare(f, native, tensors, places, mesh, second=True, tolerance=1e-12, result=None):
    """Numbers are those of whole tensors; nothing more is moved than torch's own layer moves from the same placements.

    Returns what of ours was moved, forward and backward.
    """

    def back(y):
        u = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape).cos()
        if not isinstance(y, DTensor):
            return u
        return spread(u, y.device_mesh, [R if p.is_partial() else p for p in y.placements])

    want, _, _ = derivatives(f, [t.clone() for t in tensors], back, second)
    at = [[spread(t, mesh, p) for t, p in zip(tensors, places, strict=True)] for _ in range(2)]
    got, forward, backward = derivatives(f, at[0], back, second)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(whole(mine), theirs, rtol=0, atol=tolerance * max(1, theirs.abs().max().item()))
    if result is not None:
        assert list(got[0].placements) == list(result), got[0].placements
    if native is not None:
        _, native_forward, native_backward = derivatives(native, at[1], back, False)
        for mine, theirs in ((forward, native_forward), (backward, native_backward)):
            assert mine.calls <= theirs.calls, (places, mine.calls, theirs.calls)
            assert mine.bytes <= theirs.bytes, (places, mine.bytes, theirs.bytes)
    return forward.calls, backward.calls


def draw(*shapes, dtype=torch.float64):
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def refused(error, message, call):
    """One line, which begins like this."""
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message), caught.value
    assert "\n" not in str(caught.value)


def run(rank, world, path):
    """All of it on one rank."""
    dist.init_process_group("gloo", store=dist.FileStore(path, world), rank=rank, world_size=world)
    try:
        square = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "model"))
        row = init_device_mesh("cpu", (world, 1), mesh_dim_names=("all", "one"))
        meshes = {"store": path, "4": row["all"], "1": row["one"], "2": square["model"], "2x2": square}
        for name in ("sharded_modules", "sharded_ops", "sharded_optimizers"):
            for part in importlib.import_module(f"tests.{name}").PARTS:
                torch.manual_seed(0)
                part(meshes)
    finally:
        dist.destroy_process_group()


def fork(rank, world, path):
    """The process of a rank: one import of torch serves all."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        run(rank, world, path)
        status = 0
    except BaseException:
        said = traceback.format_exc()
        # A rank that fails ends the others, whose errors hide its own.
        print(f"rank {rank}: " + ("another is gone" if "closed by peer" in said else f"\n{said}"), flush=True)
    finally:
        os._exit(status)


if __name__ == "__main__":
    # torch's own layers below warn of what is to come.
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    children = [fork(rank, int(sys.argv[1]), sys.argv[2]) for rank in range(int(sys.argv[1]))]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    print(f"exit statuses: {statuses}")
    sys.exit(any(statuses))
