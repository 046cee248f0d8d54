"""What each rank of `test_vocabulary_parallel_torch.py` runs: losses of a spread vocabulary against unsharded ones."""

import contextlib
import copy
import itertools
import sys
import traceback
import warnings

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

import gradlab.torch as lab
from gradlab.autodiff.frameworks.side import side
from gradlab.profiling.bench.peak import peak_bytes

WIDE = torch.float64
# Sums of V terms of size about 1, or of M, in another order than the unsharded op's.
NEAR = {"rtol": 1e-12, "atol": 1e-13}
OPTIONS = (
    {},
    {"reduction": "sum", "label_smoothing": 0.2},
    {"reduction": "none", "softcap": 2.5, "z_loss": 0.1},
    {"ignore_index": 3, "z_loss": 0.05, "label_smoothing": 0.1, "softcap": 4.0},
    {"ignore_index": 3, "reduction": "none", "label_smoothing": 1.0},
)


class Spread:
    """Parts of V classes: how many each rank of the group has, and which of them are this rank's."""

    def __init__(self, group, sizes=None):
        self.group, self.rank, self.world = group, dist.get_rank(group), dist.get_world_size(group)
        self.sizes = sizes or [5, 4, 1, 3][: self.world]
        first = sum(self.sizes[: self.rank])
        self.V, self.mine = sum(self.sizes), slice(first, first + self.sizes[self.rank])

    def part(self, array, axis):
        """This rank's classes, as memory of its own that can require a gradient."""
        if array is None:
            return None
        at = [slice(None)] * array.ndim
        at[axis] = self.mine
        return array.detach()[tuple(at)].clone().requires_grad_(array.requires_grad)


def drawn(*shape, dtype=WIDE, scale=1.0, grad=True):
    return (scale * torch.randn(shape, dtype=WIDE)).to(dtype).requires_grad_(grad)


def derivatives(fn, inputs, cotangents, seconds):
    """The results, their gradients, and the gradients of <gradients, seconds> by inputs and cotangents."""
    found = fn(*inputs)
    results = found if isinstance(found, tuple) else (found,)
    grads = torch.autograd.grad(results, inputs, cotangents, create_graph=True)
    twice = torch.autograd.grad(grads, (*inputs, *cotangents), seconds, allow_unused=True)
    return results, grads, twice


def closer(got, want, axis, spread, **near):
    """A part against its slice of the whole, or what every rank has against the whole."""
    if got is None and want is None:
        return
    if got.shape != want.shape:
        want = want.narrow(axis, spread.mine.start, spread.sizes[spread.rank])
    torch.testing.assert_close(got, want, equal_nan=True, **near)


def compare(spread, fn, whole, axes, cotangents_of, **near):
    """`fn(*arrays, part=)` of all classes and of a rank's: results, first and second derivatives."""
    near = near or NEAR
    parts = [a if axis is None else spread.part(a, axis) for a, axis in zip(whole, axes, strict=True)]
    parts = [p.detach().clone().requires_grad_() if p is w else p for p, w in zip(parts, whole, strict=True)]
    cotangents = [drawn(*c.shape, dtype=c.dtype) for c in cotangents_of(fn(*whole, None))]
    seconds = [drawn(*a.shape, dtype=a.dtype, grad=False) for a in whole]
    want = derivatives(lambda *a: fn(*a, None), whole, cotangents, seconds)
    mine = [c.detach().clone().requires_grad_() for c in cotangents]
    mine_second = [u if axis is None else spread.part(u, axis) for u, axis in zip(seconds, axes, strict=True)]
    got = derivatives(lambda *a: fn(*a, spread), parts, mine, mine_second)
    for one, other in zip(got, want, strict=True):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            closer(a, b, axes[i] if i < len(axes) else 0, spread, **near)
    same_bits(spread.group, *got[0])


def same_bits(group, *tensors):
    """Every rank has the same bits."""
    for t in tensors:
        others = [torch.empty_like(t) for _ in range(dist.get_world_size(group))]
        dist.all_gather(others, t.detach().contiguous(), group=group)
        assert all(torch.equal(t.nan_to_num(0.5), other.nan_to_num(0.5)) for other in others)


def as_tuple(found):
    return found if isinstance(found, tuple) else (found,)


def logits(group):
    """cross_entropy of unequal parts in every option: loss, gradient and second derivative; by classes."""
    for options, weighted in itertools.product(OPTIONS, (False, True)):
        spread = Spread(group)
        t = torch.randint(0, spread.V, (6,))
        t[0] = 3
        a = torch.rand(spread.V, dtype=WIDE) + 0.5 if weighted else None
        more = {"return_z_loss": True} if "z_loss" in options and weighted else {}

        def loss(x, part, t=t, a=a, options=options | more):
            where = {} if part is None else {"group": part.group}
            a = a if part is None else part.part(a, 0)
            return lab.cross_entropy(x, t, a, **options, **where)

        compare(spread, loss, [drawn(6, spread.V, scale=3.0)], [1], as_tuple)


def heads(group):
    """linear_cross_entropy of a spread head: loss, gradients of input, head and bias, and second derivatives."""
    for options, weighted in itertools.product(OPTIONS, (False, True)):
        spread = Spread(group, [5, 0, 1, 3][: dist.get_world_size(group)] if weighted else None)
        t, a = torch.randint(0, spread.V, (2, 3)), torch.rand(spread.V, dtype=WIDE) + 0.5 if weighted else None

        def loss(h, w, b, part, t=t, a=a, options=options, weighted=weighted):
            # Each rank keeps logits of what it has, also where that is more than another rank can.
            where = {} if part is None else {"group": part.group, "logits_memory": 200 if weighted else 0}
            a = a if part is None else part.part(a, 0)
            return lab.linear_cross_entropy(h, w, t, b, weight=a, **options, **where)

        whole = [drawn(2, 3, 4), drawn(spread.V, 4), drawn(spread.V)]
        compare(spread, loss, whole, [None, 0, 0], as_tuple)


def half_heads(group):
    """Gradients of a head in half precision; of the input the sum is rounded once; the same bits on every rank."""
    for dtype in (torch.float16, torch.bfloat16):
        spread = Spread(group, [64, 50, 3, 40][: dist.get_world_size(group)])
        h, w, t = drawn(32, 16, dtype=dtype), drawn(spread.V, 16, dtype=dtype), torch.randint(0, spread.V, (32,))
        wide = [a.detach().double().requires_grad_() for a in (h, w)]
        exact = torch.autograd.grad(lab.linear_cross_entropy(*wide, t), wide)
        plain = torch.autograd.grad(lab.linear_cross_entropy(h, w, t), (h, w))
        mine = [h.detach().clone().requires_grad_(), spread.part(w, 0)]
        got = torch.autograd.grad(lab.linear_cross_entropy(*mine, t, group=group), mine)
        same_bits(group, got[0])
        assert got[0].dtype == dtype
        at = [slice(None), spread.mine]
        for g, p, e, where in zip(got, plain, exact, at, strict=True):
            error, allowed = (g - e[where]).abs().max(), (p - e).abs().max()
            assert error <= 2 * allowed


def soft_targets(group):
    """Targets that are probabilities, and their gradients."""
    for options, weighted in (({}, False), ({"reduction": "none", "label_smoothing": 0.1, "z_loss": 0.1}, True)):
        spread = Spread(group)
        a = torch.rand(spread.V, dtype=WIDE) + 0.5 if weighted else None

        def loss(x, q, part, a=a, options=options):
            where = {} if part is None else {"group": part.group}
            a = a if part is None else part.part(a, 0)
            return lab.cross_entropy(x, q, a, **options, **where)

        q = torch.rand(4, spread.V, 3, dtype=WIDE).requires_grad_()
        compare(spread, loss, [drawn(4, spread.V, 3, scale=3.0), q], [1, 1], as_tuple)


def layouts(group):
    """Pixels, one row, no row, strides of any kind, one class on each rank and none on some, classes of a byte."""
    world = dist.get_world_size(group)
    for sizes, shape in (([5, 4, 1, 3][:world], (2, 3, 4)), ([1] * world, (5,)), ([0, 7, 0, 2][:world], (5,))):
        spread = Spread(group, sizes)
        for of in (torch.uint8, torch.int32):
            t = torch.randint(0, spread.V, shape).to(of)
            x = drawn(*shape[1:], spread.V, 2 * shape[0]).T[::2] if shape[1:] == () else drawn(*shape, spread.V)
            whole = x.detach() if x.ndim == 2 else x.detach().movedim(-1, 1)
            mine = whole.narrow(1, spread.mine.start, spread.sizes[spread.rank])
            assert not mine.is_contiguous() or mine.numel() < 2 or mine.shape[1] == spread.V
            want = lab.cross_entropy(whole, t, reduction="none")
            got = lab.cross_entropy(mine, t, reduction="none", group=group)
            torch.testing.assert_close(got, want, **NEAR)
    spread = Spread(group)
    x = drawn(spread.V)
    got = lab.cross_entropy(spread.part(x, 0), torch.tensor(4), group=group)
    torch.testing.assert_close(got, lab.cross_entropy(x, torch.tensor(4)), **NEAR)
    none = lab.cross_entropy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), reduction="sum", group=group)
    assert none == 0


def rows_without_numbers(group):
    """Parts and rows of -inf, and every row ignored, as unsharded."""
    spread = Spread(group)
    x, t = drawn(4, spread.V).detach(), torch.tensor([0, 0, spread.V - 1, 1])
    x[0, 1:] = x[1, :1] = x[2, : spread.sizes[0]] = x[3] = -torch.inf
    x.requires_grad_()
    mine = spread.part(x, 1)
    want, got = lab.cross_entropy(x, t, reduction="none"), lab.cross_entropy(mine, t, reduction="none", group=group)
    torch.testing.assert_close(got, want, **NEAR, equal_nan=True)
    assert want[0] == 0
    assert want[1].isinf()
    assert want[3].isnan()
    (a,), (b,) = (torch.autograd.grad(y[:3:2].sum(), x) for y, x in ((got, mine), (want, x)))
    torch.testing.assert_close(a, b[:, spread.mine], **NEAR, equal_nan=True)
    ignored = torch.full((4,), 1)
    for reduction in ("mean", "sum"):
        y = lab.cross_entropy(mine, ignored, ignore_index=1, reduction=reduction, group=group)
        assert y.isnan() if reduction == "mean" else y == 0


def half(group):
    """In every dtype as near to float64 as twice the unsharded op; the same bits on every rank, and a second time."""
    for dtype, inplace in itertools.product((torch.float32, torch.float16, torch.bfloat16), (False, True)):
        spread = Spread(group, [64, 50, 3, 40][: dist.get_world_size(group)])
        x, t = drawn(64, spread.V, dtype=dtype, scale=3.0), torch.randint(0, spread.V, (64,))
        a = (torch.rand(spread.V) + 0.5).to(dtype)
        exact = lab.cross_entropy(wide := x.detach().double().requires_grad_(), t, a.double(), z_loss=0.1)
        (want,) = torch.autograd.grad(exact, wide)
        plain = lab.cross_entropy(x, t, a, z_loss=0.1)
        (unsharded,) = torch.autograd.grad(plain, x)
        losses = []
        for _ in range(2):
            mine = spread.part(x, 1)
            y = lab.cross_entropy(mine * 1, t, spread.part(a, 0), z_loss=0.1, group=group, inplace=inplace)
            (dx,) = torch.autograd.grad(y, mine)
            losses.append((y, dx))
        same_bits(group, y)
        assert all(torch.equal(*pair) for pair in zip(*losses, strict=True))
        eps = torch.finfo(dtype).eps
        assert (y - exact).abs() <= 2 * (plain - exact).abs() + eps * exact.abs()
        error, allowed = (dx - want[:, spread.mine]).abs(), (unsharded - want)[:, spread.mine].abs()
        if error.numel():
            assert error.max() <= 2 * allowed.max() + eps * want.abs().max() / 8


def ways_to_call(group):
    """Modules, autocast, vmap, batched backward passes, checkpoints, no_grad; a compiler breaks its graph there."""
    spread = Spread(group)
    x, t, a = drawn(6, spread.V, scale=3.0), torch.randint(0, spread.V, (6,)), torch.rand(spread.V, dtype=WIDE)
    mine, weight = spread.part(x, 1), spread.part(a, 0)
    want = lab.cross_entropy(x, t, a, label_smoothing=0.1)
    (dx,) = torch.autograd.grad(want, x, retain_graph=True)
    layer = lab.CrossEntropyLoss(weight, label_smoothing=0.1, group=group)
    torch.testing.assert_close(layer(mine, t), want, **NEAR)
    with torch.no_grad():
        torch.testing.assert_close(layer(mine, t), want.detach(), **NEAR)
    y = torch.utils.checkpoint.checkpoint(layer, mine, t, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(y, mine)[0], dx[:, spread.mine], **NEAR)
    xs = drawn(3, 6, spread.V, grad=False)
    part = xs[..., spread.mine]
    each = torch.vmap(lambda one: lab.cross_entropy(one, t, weight, group=group))(part)
    torch.testing.assert_close(each, torch.stack([lab.cross_entropy(one, t, a) for one in xs]), **NEAR)
    y, dys = lab.cross_entropy(mine, t, reduction="none", group=group), drawn(3, 6, grad=False)
    (batch,) = torch.autograd.grad(y, mine, dys, is_grads_batched=True)
    (wanted,) = torch.autograd.grad(lab.cross_entropy(x, t, reduction="none"), x, dys, is_grads_batched=True)
    torch.testing.assert_close(batch, wanted[..., spread.mine], **NEAR)
    with torch.autocast("cpu", torch.bfloat16):
        y = lab.cross_entropy(mine.bfloat16(), t, weight.bfloat16(), group=group)
        assert y.dtype == torch.float32
        wanted = lab.cross_entropy(x.bfloat16(), t, a.bfloat16())
    torch.testing.assert_close(y, wanted, rtol=1e-6, atol=0)


def meshes(group):
    """DTensors whose classes, rows, or both are spread, evenly or not: as whole tensors, twice differentiated."""
    world = dist.get_world_size(group)
    line = init_device_mesh("cpu", (world,))
    ways = [(line, [Shard(1)]), (line, [Shard(0)])]
    if world == 4:
        ways += [(init_device_mesh("cpu", (2, 2)), [Shard(0), Shard(1)])]
    for (mesh, places), options in itertools.product(ways, (OPTIONS[0], OPTIONS[3], OPTIONS[2])):
        for shape in ((5, 9), (4, 9, 3)):
            t, a = torch.randint(0, 9, shape[:1] + shape[2:]), torch.rand(9, dtype=WIDE) + 0.5
            t.view(-1)[0] = 3
            a_places = [Shard(0) if p == Shard(1) else Replicate() for p in places]
            t_places = [Replicate() if p == Shard(1) else p for p in places]

            def loss(x, to, t=t, a=a, options=options, t_places=t_places, a_places=a_places):
                return lab.cross_entropy(x, to(t, t_places), to(a, a_places), **options)

            on_mesh(mesh, loss, [drawn(*shape, scale=3.0)], [places])
        if "ignore_index" not in options:

            def soft(x, q, to, options=options):
                return lab.cross_entropy(x, q, **options)

            on_mesh(mesh, soft, [drawn(5, 9), torch.rand(5, 9, dtype=WIDE).requires_grad_()], [places, places])


def heads_on_meshes(group):
    """linear_cross_entropy of DTensors: classes and rows spread, and an input of which each rank has rows."""
    world = dist.get_world_size(group)
    line = init_device_mesh("cpu", (world,))
    ways = [(line, [Replicate()], [Shard(0)]), (line, [Shard(0)], [Shard(0)]), (line, [Shard(0)], [Replicate()])]
    if world == 4:
        ways += [(init_device_mesh("cpu", (2, 2)), [Shard(0), Replicate()], [Replicate(), Shard(0)])]
    for (mesh, rows, classes), options in itertools.product(ways, (OPTIONS[0], OPTIONS[3])):
        t = torch.randint(0, 9, (5,))
        t[0] = 3

        def loss(h, w, b, to, t=t, rows=rows, options=options):
            return lab.linear_cross_entropy(h, w, to(t, rows), b, **options)

        on_mesh(mesh, loss, [drawn(5, 4), drawn(9, 4), drawn(9)], [rows, classes, classes])


def transforms(group):
    """torch.func.grad, also of itself, and jacrev where ranks agree for the first time; DTensors; vmap of either."""
    spread, line = Spread(group), init_device_mesh("cpu", (dist.get_world_size(group),))
    x, t = drawn(4, spread.V, grad=False), torch.randint(0, spread.V, (4,))
    mine = spread.part(x, 1)

    def loss(x, t=t, **where):
        return lab.cross_entropy(x, t, **where)

    def of_gradient(loss):
        return lambda *a: sum(g.sin().sum() for g in torch.func.grad(loss, tuple(range(len(a))))(*a))

    for transform in (torch.func.grad, lambda f: torch.func.grad(of_gradient(f)), torch.func.jacrev):
        forget(group)
        got = transform(lambda x: loss(x, group=group))(mine)
        torch.testing.assert_close(got, transform(loss)(x)[:, spread.mine], **NEAR)
    forget(group)
    xs, ts = drawn(3, 4, spread.V, grad=False), torch.randint(0, spread.V, (3, 4))
    got = torch.vmap(lambda x, t: loss(x, t, group=group))(xs[..., spread.mine], ts)
    torch.testing.assert_close(got, torch.vmap(loss)(xs, ts), **NEAR)
    # What is another on one rank is told apart there too.
    forget(group)
    message = "cross_entropy: sum of target on rank 1 of the group is"
    bad = (t + 1) % spread.V if dist.get_rank(group) == 1 else t
    refused(ValueError, message, lambda: torch.func.grad(lambda x: loss(x, bad, group=group))(mine))
    forget(group)

    h, w, b = (drawn(*shape, grad=False) for shape in ((4, 5), (spread.V, 5), (spread.V,)))

    def head(h, w, b, t=t):
        return lab.linear_cross_entropy(h, w, t, b, z_loss=0.1)

    got = torch.func.grad(lambda *a: lab.linear_cross_entropy(a[0], a[1], t, a[2], z_loss=0.1, group=group), (0, 1, 2))(
        h, spread.part(w, 0), spread.part(b, 0)
    )
    for g, e in zip(got, torch.func.grad(head, (0, 1, 2))(h, w, b), strict=True):
        closer(g, e, 0, spread, **NEAR)
    for places in ([Shard(1)], [Shard(0)]):
        to = lambda t, places=places: distribute_tensor(t, line, places)
        spread_t = distribute_tensor(t, line, [Replicate()])
        for transform in (torch.func.grad, lambda f: torch.func.grad(of_gradient(f))):
            want = transform(loss)(x)
            got = transform(lambda x, t=spread_t: loss(x, t))(to(x))
            torch.testing.assert_close(got.full_tensor(), want, **NEAR)
        # Where all arguments are wrapped.
        got = torch.func.grad(loss)(to(x), spread_t)
        torch.testing.assert_close(got.full_tensor(), torch.func.grad(loss)(x, t), **NEAR)
        # The input whole where classes are spread, and to be gathered there.
        of_h, of_w = [Replicate()] if places == [Shard(1)] else [Shard(0)], [Shard(0)]
        arrays = [distribute_tensor(a, line, p) for a, p in zip((h, w, b), (of_h, of_w, of_w), strict=True)]
        want = torch.func.grad(head, (0, 1, 2))(h, w, b)
        got = torch.func.grad(lambda *a, t=spread_t: head(*a, t), (0, 1, 2))(*arrays)
        for g, e in zip(got, want, strict=True):
            torch.testing.assert_close(g.full_tensor(), e, **NEAR)
        got = torch.func.grad(of_gradient(lambda *a, t=spread_t: head(*a, t)), (0, 1, 2))(*arrays)
        for g, e in zip(got, torch.func.grad(of_gradient(head), (0, 1, 2))(h, w, b), strict=True):
            torch.testing.assert_close(g.full_tensor(), e, **NEAR)
    all_x = distribute_tensor(xs, line, [Shard(2)])
    message = "cross_entropy: input is a DTensor under torch.vmap, wanted one that is not mapped over"
    refused(NotImplementedError, message, lambda: torch.vmap(lambda x: loss(x, spread_t))(all_x))
    message = "linear_cross_entropy: target is a DTensor under torch.vmap, wanted one that is not mapped over"
    all_t = distribute_tensor(ts, line, [Replicate()])
    refused(NotImplementedError, message, lambda: torch.vmap(lambda t: head(*arrays, t))(all_t))


def copies(group):
    """A module's deep copy, alone or in a network, has the same group and a weight of its own."""
    layer = lab.CrossEntropyLoss(torch.ones(3, dtype=WIDE), z_loss=0.1, group=group)
    assert "group=ProcessGroup" in repr(layer)
    assert "group" not in repr(lab.CrossEntropyLoss())
    for copied in (copy.deepcopy(layer), copy.deepcopy(torch.nn.Sequential(layer))[0]):
        assert type(copied) is type(layer)
        assert copied.group is group
        assert copied.weight is not layer.weight
        assert copied.z_loss == 0.1
        x, t = drawn(4, 3), torch.tensor([0, 1, 2, 0])
        assert torch.equal(copied(x, t), layer(x, t))
    assert copy.deepcopy(lab.CrossEntropyLoss()).group is None


def on_mesh(mesh, fn, whole, places):
    """`fn(*tensors, to)` of whole tensors and of DTensors; of its sine the cotangent depends on the loss."""

    def pulled(tensors, to, full):
        y = full(fn(*tensors, to)).sin().sum()
        grads = torch.autograd.grad(y, tensors, create_graph=True)
        twice = torch.autograd.grad(sum(full(g).sin().sum() for g in grads), tensors)
        return [y, *grads, *twice]

    def spread(t, places):
        return distribute_tensor(t.detach(), mesh, places).requires_grad_(t.requires_grad)

    want = pulled(whole, lambda t, _: t, lambda t: t)
    got = pulled([spread(t, p) for t, p in zip(whole, places, strict=True)], spread, DTensor.full_tensor)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.full_tensor() if isinstance(g, DTensor) else g, w, **NEAR)


class Collectives(TorchDispatchMode):
    """Counts collectives by name with the numbers that a rank gives away in each."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(t, DTensor) for t in types):
            # What becomes of it comes here too.
            return NotImplemented
        name = str(func)
        if name.startswith(("c10d", "_c10d_functional")) and "wait" not in name:
            flat = [t for a in args for t in (a if isinstance(a, list) else [a]) if isinstance(t, torch.Tensor)]
            self.found.append((name.split(".")[1].strip("_"), flat[-1].numel() if flat else 0))
        return func(*args, **(kwargs or {}))

    def taken(self):
        found, self.found = self.found, []
        return found


def collectives(group):
    """One gathering of 4 numbers a row in forward, nothing in backward, one sum of 2 or 3 a row in the second."""
    M, spread = 6, Spread(group)
    t = torch.randint(0, spread.V, (M,))
    for options, more in (({}, 2), ({"z_loss": 0.1}, 3)):
        x, a = drawn(M, spread.sizes[spread.rank]), torch.rand(spread.sizes[spread.rank], dtype=WIDE)
        lab.cross_entropy(x, t, group=group, **options)
        lab.cross_entropy(x, t, a, group=group, **options)
        with Collectives() as seen:
            y = lab.cross_entropy(x, t, group=group, **options)
            assert seen.taken() == [("allgather_base", 4 * M)]
            (dx,) = torch.autograd.grad(y, x, create_graph=True)
            assert seen.taken() == []
            torch.autograd.grad(dx.square().sum(), x)
            assert seen.taken() == [("allreduce", more * M)]
            lab.cross_entropy(x, t, a, group=group, **options)
            assert seen.taken() == [("allgather_base", 4 * M), ("allgather_base", 1)]

    h, w = drawn(M, 7), drawn(spread.sizes[spread.rank], 7)
    lab.linear_cross_entropy(h, w, t, group=group)
    with Collectives() as seen:
        y = lab.linear_cross_entropy(h, w, t, group=group)
        assert seen.taken() == [("allgather_base", 4 * M)]
        grads = torch.autograd.grad(y, (h, w), create_graph=True)
        assert seen.taken() == [("allreduce", M * 7)]
        torch.autograd.grad([g.square().sum() for g in grads], (h, w))
        assert seen.taken() == [("allreduce", 2 * M), ("allreduce", M * 7)]


def collectives_of_meshes(group):
    """A DTensor's logits stay: forward gathers row sums, a loss over rows adds up numbers; backward none."""
    world, M = dist.get_world_size(group), 8
    t = torch.randint(0, 4 * world, (M,))
    line = init_device_mesh("cpu", (world,))
    x = distribute_tensor(drawn(M, 4 * world, grad=False), line, [Shard(1)]).requires_grad_()
    where = distribute_tensor(t, line, [Replicate()])
    with Collectives() as seen:
        y = lab.cross_entropy(x, where)
        assert seen.taken() == [("allgather_base", 4 * M)]
        assert y.placements == (Replicate(),)
        torch.autograd.grad(y, x)
        assert seen.taken() == []
    x = distribute_tensor(drawn(M, 4 * world, grad=False), line, [Shard(0)]).requires_grad_()
    where = distribute_tensor(t, line, [Shard(0)])
    with Collectives() as seen:
        y = lab.cross_entropy(x, where).full_tensor()
        assert max(numel for _, numel in seen.taken()) <= 2
        torch.autograd.grad(y, x)
        # The loss's cotangent, where torch adds up the loss.
        assert all(numel <= 1 for _, numel in seen.taken())


def refusals_of_meshes(group):
    """One line for a placement that is not supported, a plain tensor beside a DTensor, a group, the logits' memory."""
    world = dist.get_world_size(group)
    line = init_device_mesh("cpu", (world,))
    x, t = drawn(4, 6, 4, grad=False), torch.zeros(4, 4, dtype=torch.int64)
    to = lambda t, place: distribute_tensor(t, line, [place])
    logits, where = to(x, Shard(1)), to(t, Replicate())
    partial = DTensor.from_local(x, line, [Partial()])
    for message, call in (
        ("placements of input is (Shard(dim=2),), wanted Replicate or Shard(1)", lambda: lab.cross_entropy(to(x, Shard(2)), where)),
        ("placements of input is (Partial(sum),), wanted Replicate or Shard(1)", lambda: lab.cross_entropy(partial, where)),
        ("group is there beside a DTensor input", lambda: lab.cross_entropy(logits, where, group=group)),
        ("inplace is True for a DTensor, wanted False", lambda: lab.cross_entropy(logits, where, inplace=True)),
        ("input of shape [5, 6, 2] is spread over", lambda: lab.cross_entropy(to(torch.zeros(5, 6, 2), Shard(0)), to(torch.zeros(5, 2).long(), Shard(0)))),
    ):  # fmt: skip
        refused(ValueError, f"cross_entropy: {message}", call)
    message = "cross_entropy: target is a Tensor, wanted a DTensor on"
    refused(TypeError, message, lambda: lab.cross_entropy(logits, t))
    h, w, t = to(drawn(4, 6, grad=False), Replicate()), to(drawn(5, 6, grad=False), Shard(1)), to(t[0], Replicate())
    message = "linear_cross_entropy: placements of linear_weight is (Shard(dim=1),), wanted Replicate or Shard(0)"
    refused(ValueError, message, lambda: lab.linear_cross_entropy(h, w, t))
    for beside, of in (("a group", (h.to_local(), drawn(5, 6, grad=False), t.to_local())), ("DTensors", (h, w, t))):
        message = f"linear_cross_entropy: skip_below is 0.1 beside {beside}, wanted 0 there"
        where = {"group": group} if beside == "a group" else {}
        refused(ValueError, message, lambda of=of, where=where: lab.linear_cross_entropy(*of, skip_below=0.1, **where))


def one_rank(group):
    """In a group of one: the unsharded op's bits, by its launches, without a collective."""
    alone = [dist.new_group([rank]) for rank in range(dist.get_world_size(group))][dist.get_rank(group)]
    x, t = drawn(5, 9), torch.randint(0, 9, (5,))
    with Collectives() as seen:
        for inplace in (False, True):
            found = []
            for where in ({}, {"group": alone}):
                y = lab.cross_entropy(x * 1, t, z_loss=0.1, inplace=inplace, **where)
                found.append((y, *torch.autograd.grad(y, x)))
            assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert seen.found == []
    message = "cross_entropy: V is 0, wanted at least one class"
    refused(ValueError, message, lambda: lab.cross_entropy(x[:, :0], t, group=alone))


def memory(group):
    """A rank's peak beyond its logits, loss and gradient, is its part of the gradient and some numbers a row."""
    M, V, world, F = 64, 8192, dist.get_world_size(group), 4
    x, t = drawn(M, V, dtype=torch.float32), torch.randint(0, V, (M,))
    mine = Spread(group, [V // world] * world).part(x, 1)

    def pulled(x, **where):
        return lambda: torch.autograd.grad(lab.cross_entropy(x, t, **where), x)

    pulled(x)(), pulled(mine, group=group)()
    whole, part = peak_bytes(side("torch"), pulled(x)), peak_bytes(side("torch"), pulled(mine, group=group))
    assert whole >= M * V * F
    # 4 numbers a row of each rank, twice while they are gathered; a row's results, and a few scalars.
    assert M * V * F // world <= part <= M * V * F // world + M * F * (4 * (world + 1) + 5 + 2) + 4096
    print_peaks("cross_entropy", whole, part, world)
    K = 32
    h, w = drawn(M, K, dtype=torch.float32), drawn(V, K, dtype=torch.float32)
    head = Spread(group, [V // world] * world).part(w, 0)

    def both(w, **where):
        return lambda: torch.autograd.grad(lab.linear_cross_entropy(h, w, t, **where), (h, w))

    both(w)(), both(head, group=group)()
    whole, part = peak_bytes(side("torch"), both(w)), peak_bytes(side("torch"), both(head, group=group))
    # dx and dw of this rank's classes; dh, and the sum of it that is on its way.
    classes = F * (M + K) * V
    assert classes <= whole
    assert classes // world <= part <= classes // world + M * F * (2 * K + 4 * (world + 1) + 7) + 4096
    print_peaks("linear_cross_entropy", whole, part, world)


def print_peaks(op, whole, part, world):
    print(f"peak of {op}: {whole} bytes unsharded, {part} on each of {world} ranks")


def refusals(group):
    """One line on every rank, without a wait: other arguments on one rank, a group without this rank, bad classes."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    x, t = drawn(4, 3), torch.tensor([0, 1, 2, 0])

    def call(x=x, t=t, group=group, **options):
        return lambda: lab.cross_entropy(x, t, group=group, **options)

    others = [
        ("shape of input but its classes on rank 1 of the group is (5,", call(drawn(5, 3), torch.zeros(5).long())),
        ("dtype of input on rank 1 of the group is torch.float32, and torch.float64 on rank 0", call(x.float())),
        ("settings on rank 1 of the group is ClassLoss(ignore_index=-100, label_smoothing=0.5", call(label_smoothing=0.5)),
        ("sum of target on rank 1 of the group is 4, and 3 on rank 0", call(t=torch.tensor([1, 1, 2, 0]))),
        ("reduction on rank 1 of the group is Reduction(reduction='sum'", call(reduction="sum")),
        ("weight on rank 1 of the group is there, and none on rank 0", call(weight=torch.ones(3, dtype=WIDE))),
    ]  # fmt: skip
    for message, other in others:
        forget(group)
        refused(ValueError, f"cross_entropy: {message}", other if rank == 1 else call())
    forget(group)
    wrong = "cross_entropy: dtype of input is int64, wanted one of"
    error, start = (TypeError, wrong) if rank == 1 else (
        ValueError, f"cross_entropy: a call on rank 1 of the group is refused there ({wrong}"
    )  # fmt: skip
    refused(error, start, call(torch.zeros(4, 3).long()) if rank == 1 else call())
    forget(group)
    total = 3 * world
    message = f"cross_entropy: target[2] is {total}, wanted a class in [0, {total})"
    refused(IndexError, message, call(t=torch.tensor([0, total - 1, total, -1])))
    first = dist.new_group([0])
    if rank:
        message = "cross_entropy: group is one without this rank, wanted one that this rank is a member of"
        refused(ValueError, message, call(group=first))
    refused(TypeError, "cross_entropy: group is a str, wanted a torch.distributed.ProcessGroup", call(group="tensor"))
    refused(ValueError, "cross_entropy: V is 0 on every rank, wanted at least one class", call(x[:, :0]))
    y = lab.cross_entropy(x * 1, t, group=group, inplace=True)
    torch.autograd.grad(y, x, retain_graph=True)
    message = "cross_entropy: a second backward pass came after inplace=True"
    refused(RuntimeError, message, lambda: torch.autograd.grad(y, x))


def forget(group):
    """Ranks agree anew."""
    from gradlab.autodiff.class_losses import vocabulary_torch

    vocabulary_torch._agreed.pop(group, None)


def refused(error, message, call):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message), caught.value
    assert "\n" not in str(caught.value)


PARTS = (
    logits, heads, half_heads, soft_targets, meshes, heads_on_meshes, layouts, rows_without_numbers, half, ways_to_call, transforms, copies,
    collectives, collectives_of_meshes, one_rank, memory, refusals, refusals_of_meshes,
)  # fmt: skip


def run(rank, world, path, names=()):
    """All of it on one rank, or the parts of some names."""
    dist.init_process_group("gloo", store=dist.FileStore(path, world), rank=rank, world_size=world)
    try:
        for part in [part for part in PARTS if not names or part.__name__ in names]:
            torch.manual_seed(0)
            part(dist.group.WORLD)
    except BaseException:
        # Before the others wait for this rank in vain, and are killed.
        traceback.print_exc()
        raise
    finally:
        with contextlib.suppress(Exception):
            dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
