"""Modules under torch's own parallel styles and wrappers, as the ranks of `sharded.py` run them."""

import copy
import itertools

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import gradlab.torch as lab
from tests.sharded import Moved, R, draw, refused, spread, whole


class Block(nn.Module):
    """Two layers and a norm, of classes that are given."""

    def __init__(self, linear=nn.Linear, relu=nn.ReLU):
        super().__init__()
        self.norm, self.up, self.act, self.down = nn.LayerNorm(6), linear(6, 8), relu(), linear(8, 6)

    def forward(self, x):
        return self.down(self.act(self.up(self.norm(x))))


class Fused(lab.Linear):
    """A layer that ends in relu, inside its kernel."""

    def forward(self, x):
        return lab.linear(x, self.weight, self.bias, activation="relu")


class FusedBlock(Block):
    def __init__(self):
        super().__init__(lab.Linear, nn.Identity)
        self.up.__class__ = Fused


# Megatron's plans: activations whole between the layers, or spread along the sequence.
TENSOR = lambda: {"up": ColwiseParallel(), "down": RowwiseParallel()}
SEQUENCE = lambda: {
    "norm": SequenceParallel(),
    "up": ColwiseParallel(input_layouts=Shard(1)),
    "down": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
}


def trained(module, x):
    """The result, and the gradients of its parameters and of x; what was moved forward and backward."""
    x = x.detach().requires_grad_()
    with Moved() as forward:
        y = module(x)
    with Moved() as backward:
        whole(y).sin().sum().backward()
    return [whole(y), whole(x.grad), *(whole(p.grad) for p in module.parameters())], forward, backward


def parallel(meshes):
    """Torch's styles on the lab's modules: numbers of the whole module, and no more sent than by torch's modules."""
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    block = Block().double()
    want, _, _ = trained(block, x)
    for mesh, plan in itertools.product((meshes["2"], meshes["4"]), (TENSOR, SEQUENCE)):
        given = x if plan is TENSOR else distribute_tensor(x, mesh, [Shard(1)], src_data_rank=None)
        native = parallelize_module(copy.deepcopy(block), mesh, plan())
        _, *theirs = trained(native, given)
        before, after, fused = (copy.deepcopy(block) for _ in range(3))
        swapped = lab.convert(before).swapped
        assert swapped == ["up", "act", "down"]
        parallelize_module(before, mesh, plan())
        assert lab.convert(parallelize_module(after, mesh, plan())).swapped == swapped
        fused.__class__, fused.act, fused.down.__class__, fused.up.__class__ = (
            FusedBlock,
            nn.Identity(),
            lab.Linear,
            Fused,
        )
        parallelize_module(fused, mesh, plan())
        for module in (before, after, fused):
            assert isinstance(module.up.weight, DTensor)
            got, *moved = trained(module, given)
            for mine, right in zip(got, want, strict=True):
                torch.testing.assert_close(mine, right, rtol=0, atol=1e-12)
            for mine, right in zip(moved, theirs, strict=True):
                assert (mine.calls, mine.bytes) == (right.calls, right.bytes), (plan, mine.calls, right.calls)
        assert moved[0].calls


def images(meshes):
    """A convolution's filters over devices, its next one's channels: one sum, as of linear layers."""
    mesh = meshes["2"]
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 2)).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    want, _, _ = trained(net, x)
    lab.convert(net)
    net.zero_grad()
    for layer, places in ((net[0], {"weight": Shard(0), "bias": Shard(0)}), (net[2], {"weight": Shard(1), "bias": R})):
        for name, place in places.items():
            p = nn.Parameter(distribute_tensor(getattr(layer, name).detach(), mesh, [place], src_data_rank=None))
            setattr(layer, name, p)
    got, forward, backward = trained(net, spread(x, mesh, [R]))
    for mine, right in zip(got, want, strict=True):
        torch.testing.assert_close(mine, right, rtol=0, atol=1e-12)
    # The last layer's sum, made when it is asked for; nothing in the two layers' backwards.
    assert (forward.calls, backward.calls) == (0, 1), (forward.calls, backward.calls)


def wrapped(meshes):
    """DDP, fully_shard, and fully_shard over a tensor-parallel module: gradients of one device."""
    world, rank = dist.get_world_size(), dist.get_rank()
    x = torch.randn(8, 3, 6, dtype=torch.float64)
    block = Block().double()
    block(x).square().mean().backward()
    want = {name: p.grad for name, p in block.named_parameters()}
    lab.convert(block)

    ddp = DistributedDataParallel(copy.deepcopy(block))
    part = x.tensor_split(world)[rank]
    ddp(part).square().mean().backward()
    for name, p in ddp.module.named_parameters():
        torch.testing.assert_close(p.grad, want[name], rtol=0, atol=1e-14)

    square = meshes["2x2"]
    data, model = square["data"], square["model"]
    for tensor_parallel in (False, True):
        net = copy.deepcopy(block)
        if tensor_parallel:
            parallelize_module(net, model, TENSOR())
        layers = [net.up, net.down, net]
        for layer in layers:
            fully_shard(layer, mesh=data)
        part = x.tensor_split(data.size())[data.get_local_rank()]
        optimizers = [lab.AdamW(net.parameters(), lr=0.1, max_norm=0.1)]
        net(part).square().mean().backward()
        for name, p in net.named_parameters():
            torch.testing.assert_close(whole(p.grad), want[name], rtol=0, atol=1e-14)
        if tensor_parallel:
            # Parameters on two meshes, of which one is a part of the other: no one norm.
            refused(ValueError, "AdamW: the norm is one over", optimizers[0].step)
            optimizers[0].max_norm = None
        else:
            norm = torch.stack([g.square().sum() for g in want.values()]).sum().sqrt()
            optimizers[0].step()
            torch.testing.assert_close(optimizers[0].grad_norm, norm)
        optimizers[0].step()


def transforms(meshes):
    """torch.func and batched backwards where torch's own layer has them."""
    mesh = meshes["2"]
    x, w = draw((4, 2, 6), (4, 6))
    a, b = spread(x, mesh, [Shard(0)]), spread(w, mesh, [R])
    same = lambda mine, right: torch.testing.assert_close(whole(mine), right, rtol=0, atol=1e-12)
    same(torch.vmap(lab.linear, (0, None))(a, b), F.linear(x, w))
    same(
        torch.func.grad(lambda b: lab.linear(a, b).sin().sum())(b),
        torch.func.grad(lambda w: F.linear(x, w).sin().sum())(w),
    )
    u = torch.randn(3, 4, 2, 4, dtype=torch.float64)
    for relu in (None, "relu"):
        grads = []
        for x_, w_, u_ in ((x, w, u), (a, b, spread(u, mesh, [Shard(1)]))):
            y = lab.linear(x_.requires_grad_(), w_.requires_grad_(), activation=relu)
            grads.append(torch.autograd.grad(y, (x_, w_), u_, is_grads_batched=True))
        for right, mine in zip(*grads, strict=True):
            same(mine, right)


def compiled(meshes):
    """torch.compile of a layer on DTensors, the first that the process meets, without a graph break; and backward."""
    mesh = meshes["2"]
    if dist.get_rank() >= mesh.size():
        return
    layer = parallelize_module(lab.Linear(6, 8), mesh, ColwiseParallel(use_local_output=False))
    run = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 6)
    results = []
    for f in (run, layer):
        given = x.clone().requires_grad_()
        y = f(given)
        assert list(y.placements) == [Shard(2)]
        results.append([y, *torch.autograd.grad(y.redistribute(placements=[R]).sum(), (given, layer.weight))])
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(whole(mine), whole(right))


def half(meshes):
    """A row-parallel product in bfloat16 errs no more than twice torch's: both round each term of the sum."""
    mesh = meshes["4"]
    x, w = draw((32, 64), (16, 64))
    right = F.linear(x.bfloat16().double(), w.bfloat16().double())
    errors = []
    for f in (lab.linear, F.linear):
        y = f(spread(x.bfloat16(), mesh, [Shard(1)]), spread(w.bfloat16(), mesh, [Shard(1)]))
        assert list(y.placements) == [Partial()]
        errors.append((whole(y).double() - right).abs().max())
    assert errors[0] <= 2 * errors[1]


def refusals(meshes):
    """One line, the same on every rank, for tensors that are not all on one mesh and ops that take no DTensor."""
    mesh, other = meshes["2x2"], meshes["4"]
    x, w = draw((4, 6), (5, 6))
    a, b = spread(x, mesh, [R, R]), spread(w, other, [R])
    refused(TypeError, f"linear: weight is a Tensor, wanted a DTensor on {mesh} like input", lambda: lab.linear(a, w))
    refused(TypeError, f"linear: input is a Tensor, wanted a DTensor on {other} like weight", lambda: lab.linear(x, b))
    refused(ValueError, f"linear: mesh of weight is {other}, wanted {mesh} like input", lambda: lab.linear(a, b))
    ops = torch.ops.gradlab
    refused(TypeError, "gradlab::relu_mask: mask is a Tensor, wanted a DTensor", lambda: ops.relu_mask(a, x))
    refused(ValueError, "gradlab::relu_mask: mesh of mask is", lambda: ops.relu_mask(a, spread(x, other, [R])))
    refused(
        TypeError, "gradlab::global_norm: tensors is a DTensor, wanted a plain", lambda: ops.global_norm([a], 1.0, None)
    )
    # The mean of parts is no sum: it is made, then the op runs.
    mean = DTensor.from_local(x, other, [Partial("avg")])
    torch.testing.assert_close(whole(lab.relu(mean)), x.relu())


PARTS = (compiled, parallel, images, wrapped, transforms, half, refusals)
