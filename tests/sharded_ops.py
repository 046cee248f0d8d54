"""Every op on DTensors, as the ranks of `sharded.py` run it: numbers, derivatives, placements, and what is sent."""

import torch
import torch.nn.functional as F
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Shard

import gradlab.torch as lab
from tests.sharded import R, compare, draw, spread, whole


def linear(meshes):
    """Batch, column and row parallel, parts of unequal length and none; relu fused, and apart where it has to be."""
    for mesh in (meshes["4"], meshes["2"], meshes["1"]):
        for relu in (False, True):
            ours, native = layer(relu)
            tensors = draw((5, 6), (7, 6), (7,))
            for places, result, moved in (
                ((R, R, R), R, (0, 0)),
                ((Shard(0), R, R), Shard(0), (0, 0)),
                ((R, Shard(0), Shard(0)), Shard(1), (0, 0)),
                ((Shard(1), Shard(1), R), R if relu else Partial(), (int(relu), 0)),
                ((R, Shard(1), R), R if relu else Partial(), (int(relu), 0)),
            ):
                # On one device nothing is moved, and placements are all one.
                moved, result = ((0, 0), None) if mesh.size() == 1 else (moved, [result])
                got = compare(ours, native, tensors, [[p] for p in places], mesh, result=result)
                assert got == moved, (mesh, relu, places, got)
            compare(ours, None, tensors, [[Shard(0)], [Shard(0)], [Partial()]], mesh)
            compare(ours, None, tensors, [[Shard(1)], [Shard(0)], [Shard(0)]], mesh)
    mesh = meshes["2x2"]
    ours, native = layer(True)
    tensors = draw((5, 6), (7, 6), (7,))
    result = [Shard(0), Shard(1)]
    places = ([Shard(0), R], [R, Shard(0)], [R, Shard(0)])
    assert compare(ours, native, tensors, places, mesh, result=result) == (0, 0)
    assert compare(ours, native, tensors, ([R, R], [Shard(0), Shard(0)], [Shard(0), Shard(0)]), mesh)


def layer(relu):
    def ours(x, w, b):
        return lab.linear(x, w, b, activation="relu" if relu else None)

    def native(x, w, b):
        y = F.linear(x, w, b)
        return F.relu(y) if relu else y

    return ours, native


def sequences(meshes):
    """Rows with two leading axes, either or both of them spread, unevenly too: neither flattened nor gathered."""
    tensors = draw((3, 5, 6), (7, 6), (7,))
    for mesh in (meshes["4"], meshes["2"]):
        for relu in (False, True):
            ours, native = layer(relu)
            for axis in (0, 1):
                places = [[Shard(axis)], [R], [R]]
                assert compare(ours, None, tensors, places, mesh, result=[Shard(axis)]) == (0, 0)
            places = [[R], [Shard(0)], [Shard(0)]]
            assert compare(ours, native, tensors, places, mesh, result=[Shard(2)]) == (0, 0)
            result = [R if relu else Partial()]
            assert compare(ours, native, tensors, [[Shard(2)], [Shard(1)], [R]], mesh, result=result) == (int(relu), 0)
    ours, _ = layer(True)
    mesh, result = meshes["2x2"], [Shard(0), Shard(1)]
    assert compare(ours, None, tensors, [[Shard(0), Shard(1)], [R, R], [R, R]], mesh, result=result) == (0, 0)
    result = [Shard(1), Shard(2)]
    places = [[Shard(1), R], [R, Shard(0)], [R, Shard(0)]]
    assert compare(ours, None, tensors, places, mesh, result=result) == (0, 0)
    # A single row, a single result, no bias: what linear takes besides.
    mesh = meshes["4"]
    compare(lab.linear, None, draw((6,), (7, 6)), [[Shard(0)], [Shard(1)]], mesh)
    compare(lab.linear, None, draw((2, 3, 6), (6,), ()), [[Shard(1)], [R], [R]], mesh, result=[Shard(1)])


def convolution(meshes):
    """Split by images, filters and channels; groups by images."""
    mesh = meshes["4"]
    tensors = draw((5, 4, 6, 5), (6, 4, 3, 2), (6,))
    for relu in (False, True):

        def ours(x, w, b, relu=relu):
            return lab.conv2d(x, w, b, padding=1, stride=(2, 1), activation="relu" if relu else None)

        for places, result, moved in (
            ((Shard(0), R, R), Shard(0), (0, 0)),
            ((R, Shard(0), Shard(0)), Shard(1), (0, 0)),
            ((Shard(1), Shard(1), R), R if relu else Partial(), (int(relu), 0)),
            ((Shard(1), R, Partial()), R if relu else Partial(), (int(relu), 0)),
            # A window reaches over into the next part: images are dealt out in place of their rows.
            ((Shard(2), R, R), Shard(0), (1, 1)),
        ):
            got = compare(ours, None, tensors, [[p] for p in places], mesh, result=[result])
            assert got == moved, (relu, places, got)

        # Three channels for four ranks, each of which adds its share of the bias.
        compare(ours, None, draw((2, 3, 6, 5), (6, 3, 3, 2), (6,)), [[Shard(1)], [R], [Partial()]], mesh)

    def native(x, w, b):
        return F.conv2d(x, w, b, padding=1, stride=(2, 1))

    def plain(x, w, b):
        return lab.conv2d(x, w, b, padding=1, stride=(2, 1))

    compare(plain, native, tensors, [[Shard(0)], [R], [R]], mesh)

    def grouped(x, w):
        return lab.conv2d(x, w, groups=2)

    tensors = draw((3, 4, 5, 5), (6, 2, 2, 2))
    assert compare(grouped, None, tensors, [[Shard(0)], [R]], mesh, result=[Shard(0)]) == (0, 0)
    compare(grouped, None, tensors, [[Shard(1)], [Shard(0)]], mesh, result=[Shard(0)])
    x, w = draw((3, 4, 5, 5), (4, 4, 2, 2))
    last = x.contiguous(memory_format=torch.channels_last)
    y = lab.conv2d(spread(last, mesh, [Shard(0)]), spread(w, mesh, [R]))
    assert y.stride() == lab.conv2d(last, w).stride()
    assert y.to_local().is_contiguous(memory_format=torch.channels_last)


def pooling(meshes):
    """Images and channels stay where they are, and so do indices."""
    for mesh, places in ((meshes["4"], [Shard(0)]), (meshes["4"], [Shard(1)]), (meshes["2x2"], [Shard(0), Shard(1)])):
        (x,) = draw((5, 6, 5, 7))
        pool = lambda x: lab.max_pool2d(x, 3, 2, 1)
        assert compare(pool, None, [x], [places], mesh, result=places) == (0, 0)
        y, at = lab.max_pool2d(spread(x, mesh, places), 2, return_indices=True)
        assert list(at.placements) == places
        want, want_at = F.max_pool2d(x, 2, return_indices=True)
        assert torch.equal(y.full_tensor(), want)
        assert torch.equal(at.full_tensor(), want_at)
    assert compare(pool, None, draw((2, 3, 5, 7)), [[Shard(3)]], meshes["4"], result=[Shard(0)]) == (1, 0)


def elementwise(meshes):
    """Activations and losses, each element where it is; a sum over spread elements is partial, a mean over all."""
    mesh, square = meshes["4"], meshes["2x2"]
    for f, native in ((lab.relu, F.relu), (lab.tanh, torch.tanh), (lab.sigmoid, torch.sigmoid)):
        assert compare(f, native, draw((5, 3)), [[Shard(0)]], mesh, result=[Shard(0)]) == (0, 0)
        assert compare(f, native, draw((5, 3)), [[Partial()]], mesh, result=[R]) == (1, 0)
        places = [Shard(1), Shard(0)]
        assert compare(f, native, draw((3, 5, 2)), [places], square, result=places) == (0, 0)
    t, twice = torch.rand(5, 3, dtype=torch.float64), torch.rand(1, 3, dtype=torch.float64)
    for reduction in ("mean", "sum", "none"):

        def mse(x, t, how=reduction):
            return lab.mse_loss(x, t, reduction=how)

        def native_mse(x, t, how=reduction):
            return F.mse_loss(x, t, reduction=how)

        def bce(x, t, how=reduction):
            p = spread(twice, x.device_mesh, [R]) if isinstance(x, DTensor) else twice
            return lab.binary_cross_entropy_with_logits(x, t, reduction=how, pos_weight=p)

        sums = reduction != "none"
        for places in ([Shard(0)], [Shard(1)]):
            result = [Partial()] if sums else places
            assert compare(mse, native_mse, draw((5, 3), (5, 3)), [places] * 2, mesh, result=result) == (0, 0)
            assert compare(bce, None, [*draw((5, 3)), t], [places, places], mesh, result=result) == (0, 0)
            # A whole target is cut, not its gathered counterpart.
            assert compare(mse, None, draw((5, 3), (5, 3)), [places, [R]], mesh, result=result) == (0, 0)
        compare(mse, None, draw((5, 3), (5, 3)), [[Shard(0), Shard(1)]] * 2, square)


def steps(meshes):
    """A step of an optimizer as a function: of parts, with derivatives, for a rate on the device too."""
    rate = torch.tensor(0.1, dtype=torch.float64)
    for mesh, places in ((meshes["4"], [Shard(0)]), (meshes["2x2"], [Shard(1), Shard(0)])):
        p, g, m, v = draw((5, 3), (5, 3), (5, 3), (5, 3))

        def adam(p, g, m, v, lr=0.1):
            new = lab.adam_step(p, g, m, v.square(), step=2, lr=lr)
            return new[0] + new[1] * new[2]

        compare(adam, None, [p, g, m, v], [places] * 4, mesh, second=False, result=places)
        compare(adam, None, [p, g, m, v, rate], [places] * 4 + [[R] * mesh.ndim], mesh, second=False, result=places)

        def sgd(p, g, b):
            p, b = lab.sgd_step(p, g, b, lr=0.1, momentum=0.9, nesterov=True)
            return p * b

        assert compare(sgd, None, [p, g, m], [places] * 3, mesh, result=places) == (0, 0)
        other = [Partial()] * mesh.ndim
        compare(lambda p, g: lab.sgd_step(p, g, lr=0.1)[0], None, [p, g], [places, other], mesh, result=places)
        plain = lab.adam_step(
            spread(p, mesh, places), *(spread(t, mesh, places) for t in (g, m, v * v)), step=1, lr=rate
        )
        torch.testing.assert_close(whole(plain[0]), lab.adam_step(p, g, m, v * v, step=1, lr=rate)[0])


def outside(meshes):
    """A rank that is not in the mesh calls what others call: it gets DTensors of their shapes, and holds nothing."""
    mesh = DeviceMesh("cpu", [0, 1])
    member = mesh.get_coordinate() is not None
    classes = torch.tensor([1, 0, 2, 6, 3])

    def ce(x, **options):
        t = spread(classes, mesh, [R]) if isinstance(x, DTensor) else classes
        return lab.cross_entropy(x, t, **options)

    def head(x, w, b):
        t = spread(classes, mesh, [R]) if isinstance(x, DTensor) else classes
        return lab.linear_cross_entropy(x, w, t, b, softcap=3.0)

    def adam(p, g, m, v):
        return lab.adam_step(p, g, m, v * v, step=1)[0]

    for f, places, *shapes in (
        (lambda x: lab.relu(x), [Shard(0)], (5, 4)),
        (lambda x: lab.max_pool2d(x, 2), [Shard(0)], (3, 2, 4, 4)),
        (lambda x, w, b: lab.linear(x, w, b, activation="relu"), [Shard(0)], (5, 4), (3, 4), (3,)),
        (lambda x, w: lab.conv2d(x, w), [Shard(0)], (3, 2, 4, 4), (3, 2, 2, 2)),
        (lambda x, y: lab.mse_loss(x, y), [Shard(0)], (5, 4), (5, 4)),
        (lambda x, y: lab.binary_cross_entropy_with_logits(x, y.sigmoid()), [Shard(0)], (5, 4), (5, 4)),
        (lambda p, g: lab.sgd_step(p, g, lr=0.1)[0], [Shard(0)], (5, 4), (5, 4)),
        (adam, [Shard(0)], *[(5, 4)] * 4),
        (ce, [Shard(0)], (5, 7)),
        (ce, [Shard(1)], (5, 7)),
        (lambda x: ce(x, reduction="none", z_loss=0.1), [Shard(1)], (5, 7)),
        (lambda x, q: lab.cross_entropy(x, q.softmax(1)), [Shard(1)], (5, 7), (5, 7)),
        (head, [Shard(0)], (5, 4), (7, 4), (7,)),
    ):
        tensors = [t.requires_grad_() for t in draw(*shapes)]
        at = [spread(t.detach(), mesh, places).requires_grad_() for t in tensors]
        found = []
        for given in (tensors, at):
            y = f(*given)
            # A step of Adam has one derivative.
            grads = torch.autograd.grad((y * y).sum(), given, create_graph=f is not adam)
            twice = () if f is adam else torch.autograd.grad(sum((g * g).sum() for g in grads), given)
            found.append([y, *grads, *twice])
        for theirs, mine in zip(*found, strict=True):
            assert isinstance(mine, DTensor)
            assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)
            if member:
                torch.testing.assert_close(mine.full_tensor(), theirs, rtol=1e-12, atol=1e-12)
            else:
                assert not mine.to_local().count_nonzero()


PARTS = (linear, sequences, convolution, pooling, elementwise, steps, outside)
