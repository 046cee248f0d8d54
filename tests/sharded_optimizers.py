"""Optimizers and clipping over DTensors against torch's on tensors, as the ranks of `sharded.py` run them."""

import copy

import torch
import torch.distributed as dist
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import gradlab.torch as lab
from gradlab.kernels.runtime.launch_triton import noting
from tests.sharded import Moved, R, refused

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
                if mesh.get_local_rank():
                    both.spread[0].grad.to_local().zero_()
            scaler.step(optimizer)
            scaler.update()
            same = [torch.equal(p.full_tensor(), was) for p, was in zip(both.spread, before, strict=True)]
            assert all(same) if bad else not any(same)


def refusals(mesh):
    """One line for what is spread in another way than its parameter, or is a sum still to be made."""
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


def launches(meshes):
    """One launch for all parts that lie here; one for their norm, and one number that is sent once."""
    kernels = []
    note = lambda jit: kernels.append(jit.fn.__name__)
    for mesh in (meshes["4"], meshes["2x2"]):
        ways = ([Shard(0)], [R]) if mesh.ndim == 1 else ([Shard(0), Shard(1)], [R, Shard(0)], [R, R])
        params = [torch.nn.Parameter(distribute_tensor(torch.randn(8, 4), mesh, way)) for way in ways * 2]
        for p in params:
            p.grad = torch.ones_like(p)
        norm = torch.tensor(32.0 * len(params)).sqrt()
        for kind, names in ((lab.AdamW, ["_adam_many_kernel"]), (lab.SGD, ["_sgd_many_kernel"])):
            optimizer = kind(params, lr=0.1)
            kernels.clear()
            with noting(note), Moved() as moved:
                optimizer.step()
            assert (kernels, moved.calls) == (names, 0)
            optimizer.max_norm = 1.0
            kernels.clear()
            with noting(note), Moved() as moved:
                optimizer.step()
            assert moved.calls == 1
            # What several ranks have is measured by the first of them alone; each has some part here.
            assert kernels == ["_squares_many_kernel", "_clip_kernel", "_clip_kernel", *names]
            torch.testing.assert_close(optimizer.grad_norm.float(), norm)
        with Moved() as moved:
            torch.testing.assert_close(lab.clip_grad_norm_(params, 1.0).full_tensor(), norm)
        assert moved.calls == 1


def mixed(mesh):
    """Plain parameters beside spread ones step in one launch; torch's own norm, and this one, are of one kind."""
    both = Both(mesh)
    both.draw()
    optimizer = lab.AdamW([both.spread[0], both.plain[1]], lr=0.1)
    theirs = torch.optim.AdamW([both.plain[0]], lr=0.1)
    other = torch.nn.Parameter(both.plain[1].detach().clone())
    other.grad = both.plain[1].grad
    second = torch.optim.AdamW([other], lr=0.1)
    for o in (optimizer, theirs, second):
        o.step()
    torch.testing.assert_close(both.spread[0].full_tensor(), both.plain[0].detach(), rtol=0, atol=1e-13)
    torch.testing.assert_close(both.plain[1], other, rtol=0, atol=1e-13)


def resumed(meshes):
    """Saved by two ranks, loaded by four, by two and by one: the curve goes on as theirs."""
    x = torch.randn(8, 3, dtype=torch.float64)
    start = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1)).double()
    folder = f"{meshes['store']}.checkpoint"

    def made(mesh):
        net = copy.deepcopy(start)
        lab.convert(net)
        fully_shard(net, mesh=mesh)
        return net, lab.AdamW(net.parameters(), lr=0.02, max_norm=0.5)

    def train(net, optimizer, mesh, steps):
        losses = []
        part = x.tensor_split(mesh.size())[mesh.get_local_rank()]
        for _ in range(steps):
            optimizer.zero_grad()
            loss = net(part).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(DTensor.from_local(loss.detach() / mesh.size(), mesh, [Partial()]).full_tensor())
        return torch.stack(losses)

    mesh = meshes["2"]
    net, optimizer = made(mesh)
    train(net, optimizer, mesh, 2)
    if dist.get_rank() < 2:
        state = dict(zip(("model", "optim"), get_state_dict(net, optimizer), strict=True))
        checkpoint.save(state, checkpoint_id=folder, process_group=mesh.get_group())
    want = train(net, optimizer, mesh, 3)
    dist.barrier()
    for name in ("4", "2", "1"):
        mesh = meshes[name]
        net, optimizer = made(mesh)
        with torch.no_grad():
            for p in net.parameters():
                p.zero_()
        state = dict(zip(("model", "optim"), get_state_dict(net, optimizer), strict=True))
        checkpoint.load(state, checkpoint_id=folder, process_group=mesh.get_group())
        set_state_dict(net, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
        torch.testing.assert_close(train(net, optimizer, mesh, 3), want, rtol=0, atol=1e-13)
    assert want[0] > want[-1]


def on(part, name):
    """A part on the mesh of that name."""
    return lambda meshes: part(meshes[name])


PARTS = (
    *(on(part, "2") for part in (optimizers, norms, precision, checkpoints, scaled, mixed, refusals)),
    *(on(part, "1") for part in (optimizers, norms)),
    on(two_axes, "2x2"),
    launches,
    resumed,
)
