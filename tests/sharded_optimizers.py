"""What each rank of `test_sharded_optimizers_torch.py` runs: optimizers over DTensors against torch's on tensors."""

import copy
import sys
import warnings

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import gradlab.torch as lab

KINDS = (
    (lab.SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (lab.Adam, torch.optim.Adam, {"amsgrad": True}),
    (lab.AdamW, torch.optim.AdamW, {}),
)
# Rows that two ranks share out unevenly, one row that a single rank has, columns, and what all ranks have.
SPREAD = (((5, 3), Shard(0)), ((1, 4), Shard(0)), ((2, 4), Shard(1)), ((3,), Replicate()))


class Both:
    """Plain parameters, and the same spread over a mesh; each rank draws the same gradients for both."""

    def __init__(self, mesh, dtype=torch.float64):
        self.mesh = mesh
        self.plain = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape, _ in SPREAD]
        self.spread = [
            torch.nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [place]))
            for p, (_, place) in zip(self.plain, SPREAD, strict=True)
        ]

    def draw(self, partial=False):
        """Gradients; with `partial` those of what all ranks have are sums that are still to be made."""
        for p, q in zip(self.plain, self.spread, strict=True):
            p.grad = torch.randn(p.shape).to(p.dtype)
            q.grad = distribute_tensor(p.grad.clone(), self.mesh, q.placements)
            if partial:
                part = p.grad / self.mesh.size()
                q.grad = DTensor.from_local(part, self.mesh, [Partial()])

    def close(self, atol=1e-13):
        for p, q in zip(self.plain, self.spread, strict=True):
            torch.testing.assert_close(q.full_tensor(), p.detach(), rtol=0, atol=atol)


def optimizers(mesh):
    """Steps are torch's, also of gradients that are partial sums; the states, too, DTensors like the parameters."""
    for ours, theirs, options in KINDS:
        both = Both(mesh)
        start = both.plain[0].detach().clone()
        a, b = ours(both.spread, lr=0.1, **options), theirs(both.plain, lr=0.1, **options)
        for turn in range(3):
            both.draw(partial=turn == 1)
            a.step()
            b.step()
        both.close()
        assert (both.plain[0] - start).abs().max() > 1e-2
        for p, q in zip(both.plain, both.spread, strict=True):
            for name, t in a.state[q].items():
                if name == "step":
                    assert t == 3
                    continue
                assert isinstance(t, DTensor)
                assert t.placements == q.placements
                torch.testing.assert_close(t.full_tensor(), b.state[p][name], rtol=0, atol=1e-13)


def norms(mesh):
    """Clipped by the norm over the whole mesh, in the step and before it; what all ranks have is counted once."""
    for ours, theirs, _ in KINDS:
        both = Both(mesh)
        a, b = ours(both.spread, lr=0.1, max_norm=0.5), theirs(both.plain, lr=0.1)
        for turn in range(2):
            both.draw(partial=turn == 1)
            want = torch.nn.utils.clip_grad_norm_(both.plain, 0.5)
            a.step()
            b.step()
            torch.testing.assert_close(a.grad_norm, want, rtol=1e-12, atol=0)
        both.close()
    for partial in (False, True):
        both.draw(partial)
        want = torch.nn.utils.clip_grad_norm_(both.plain, 0.5)
        got = lab.clip_grad_norm_(both.spread, 0.5)
        assert isinstance(got, DTensor)
        torch.testing.assert_close(got.full_tensor(), want, rtol=1e-12, atol=0)
        assert want > 1
        for p, q in zip(both.plain, both.spread, strict=True):
            torch.testing.assert_close(q.grad.full_tensor(), p.grad, rtol=1e-12, atol=0)


def two_axes(mesh):
    """Sharded along one axis of a mesh and repeated along the other, or along both, in one norm."""
    plain = [torch.nn.Parameter(torch.zeros(4, 2)) for _ in range(3)]
    ways = ([Shard(0), Replicate()], [Replicate(), Shard(0)], [Shard(0), Shard(1)])
    spread = [
        torch.nn.Parameter(distribute_tensor(p.detach().clone(), mesh, way)) for p, way in zip(plain, ways, strict=True)
    ]
    for p, q in zip(plain, spread, strict=True):
        p.grad = torch.randn(4, 2)
        q.grad = distribute_tensor(p.grad.clone(), mesh, q.placements)
    want = torch.nn.utils.clip_grad_norm_(plain, 0.5)
    torch.testing.assert_close(lab.clip_grad_norm_(spread, 0.5).full_tensor(), want, rtol=1e-6, atol=0)


def precision(mesh):
    """Masters are those of plain parameters; of random rounding the first part is, others are drawn apart."""
    both = Both(mesh, torch.bfloat16)
    options = {"lr": 0.1, "master_weights": True, "state_dtype": torch.bfloat16}
    a, b = (lab.Adam(ps, **options) for ps in (both.spread, both.plain))
    for _ in range(2):
        both.draw()
        a.step()
        b.step()
    for name in ("exp_avg", "exp_avg_sq", "master"):
        p, q = both.plain[0], both.spread[0]
        mine, want = a.state[q][name], b.state[p][name]
        assert mine.dtype == want.dtype
        assert mine.placements == q.placements
        assert torch.equal(mine.full_tensor()[:3], want[:3])
        atol = 0.05 if name == "master" else 2**-7
        torch.testing.assert_close(mine.full_tensor(), want, rtol=2**-6, atol=atol)
        both_have = a.state[both.spread[3]][name]
        assert torch.equal(both_have.to_local(), b.state[both.plain[3]][name])


def checkpoints(mesh):
    """A network under fully_shard: get_optimizer_state_dict gives what torch's optimizer gives, and loads into ours."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 1)).double()
    nets = [copy.deepcopy(net) for _ in range(3)]
    for n in nets:
        fully_shard(n, mesh=mesh)
    x = torch.randn(4, 3, dtype=torch.float64)
    a, b = lab.AdamW(nets[0].parameters(), lr=0.1), torch.optim.AdamW(nets[1].parameters(), lr=0.1)
    third = lab.AdamW(nets[2].parameters(), lr=0.1)

    def train(*pairs):
        for n, o in pairs:
            o.zero_grad()
            n(x).square().sum().backward()
            o.step()

    train((nets[0], a), (nets[1], b))
    whole = StateDictOptions(full_state_dict=True)
    mine, want = (get_optimizer_state_dict(n, o, options=whole) for n, o in ((nets[0], a), (nets[1], b)))
    assert mine["state"].keys() == want["state"].keys()
    for name, state in want["state"].items():
        for key, t in state.items():
            torch.testing.assert_close(mine["state"][name][key], t, rtol=1e-12, atol=1e-15, check_dtype=False)
    with torch.no_grad():
        for p, q in zip(nets[0].parameters(), nets[2].parameters(), strict=True):
            q.copy_(p)
    set_optimizer_state_dict(nets[2], third, copy.deepcopy(mine), options=whole)
    train((nets[0], a), (nets[1], b), (nets[2], third))
    for p, q, r in zip(*(n.parameters() for n in nets), strict=True):
        torch.testing.assert_close(p.full_tensor(), q.full_tensor(), rtol=0, atol=1e-13)
        assert torch.equal(p.to_local(), r.to_local())


def scaled(mesh):
    """An infinite gradient on one rank keeps every rank from stepping."""
    both = Both(mesh, torch.float32)
    for kind in (lab.SGD, lab.AdamW):
        optimizer = kind(both.spread, lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for bad in (True, False):
            both.draw()
            before = [p.full_tensor().clone() for p in both.spread]
            scaler.scale(torch.ones(()))
            if bad:
                both.spread[0].grad = distribute_tensor(torch.full((5, 3), torch.inf), mesh, [Shard(0)])
                # The rest of the mesh has finite parts of it.
                if dist.get_rank():
                    both.spread[0].grad.to_local().zero_()
            scaler.step(optimizer)
            scaler.update()
            same = [torch.equal(p.full_tensor(), was) for p, was in zip(both.spread, before, strict=True)]
            assert all(same) if bad else not any(same)


def refusals(mesh):
    """One line for what is spread in another way than its parameter, and for an op that has no rule for shards."""
    both = Both(mesh)
    both.draw()
    optimizer = lab.Adam(both.spread)
    optimizer.step()
    optimizer.state[both.spread[0]]["exp_avg"] = torch.zeros(5, 3, dtype=torch.float64)
    message = "Adam: exp_avg is a Tensor beside a DTensor parameter, wanted a DTensor like its parameter"
    refused(TypeError, message, optimizer.step)
    mixed = [*both.spread, both.plain[0]]
    refused(ValueError, "clip_grad_norm_: the norm is one over", lambda: lab.clip_grad_norm_(mixed, 1.0))
    partial = torch.nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Partial()]))
    partial.grad = torch.ones_like(partial)
    refused(ValueError, "SGD: placements of a parameter is (Partial(sum),)", lab.SGD([partial]).step)
    w = both.spread[0].detach()
    message = "linear: weight is a Tensor, wanted a DTensor on DeviceMesh("
    refused(TypeError, message, lambda: lab.linear(w, both.plain[0].detach()))


def refused(error, message, call):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message), caught.value
    assert "\n" not in str(caught.value)


def run(rank, world, path):
    """All of it on one rank."""
    dist.init_process_group("gloo", store=dist.FileStore(path, world), rank=rank, world_size=world)
    try:
        mesh = init_device_mesh("cpu", (world, 1), mesh_dim_names=("all", "one"))
        for part in (optimizers, norms, precision, checkpoints, scaled, refusals):
            torch.manual_seed(0)
            part(mesh["all"])
        for part in (optimizers, norms):
            torch.manual_seed(0)
            part(mesh["one"])
        torch.manual_seed(0)
        two_axes(mesh)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    # torch's own layers below warn of what is to come.
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
