"""What a layer holds between forward and backward on torch: all of it where hooks, checkpoint and offload see it."""

import functools
import gc

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import gradlab.torch as lab
from gradlab.autodiff.frameworks.side import as_tuple
from gradlab.autodiff.frameworks.side_torch import SIDE
from gradlab.kernels.spec import specs

ROWS, V, K = 8, 64, 3
LOGITS = ROWS * V * 4


class Made(TorchDispatchMode):
    """The storages of all tensors made within it, not held."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def held(self, *known):
        """The bytes that are still there beside the storages of known tensors."""
        gc.collect()
        there = {t.untyped_storage()._cdata for t in known}
        return sum(n for at, (ref, n) in self.storages.items() if at not in there and not ref.expired())


class Elsewhere(saved_tensors_hooks):
    """Puts what is saved into a list, which whoever asks may look at and empty."""

    def __init__(self):
        self.saved = []
        super().__init__(self._pack, lambda i: self.saved[i])

    def _pack(self, t):
        self.saved.append(t)
        return len(self.saved) - 1

    def bytes(self):
        return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in self.saved}.values())


def nodes(results):
    """The lab's nodes of the graph behind results."""
    seen, found, left = set(), [], [y.grad_fn for y in results]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [n for n, _ in node.next_functions]
            found += [node] if type(node).__module__.startswith("gradlab.") or hasattr(node, "saved_tensors") else []
    return found


def called(name, case):
    op = specs()[name]
    arrays = op.at(case).make()
    args = [SIDE.put(a, "float32").requires_grad_(n in op.wrt) for n, a in arrays.items()]
    return op.at(case).bind(SIDE.op(name)), args


def given_away(**options):
    x, t = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 4, 2, 1])
    return (lambda x, t: lab.cross_entropy(x * 1, t, inplace=True, **options)), [x, t]


SUBJECTS = {
    f"{name}, {case.name}": functools.partial(called, name, case)
    for name, op in specs().items()
    for case in op.select("check")
} | {
    "cross_entropy, inplace": given_away,
    "cross_entropy, inplace, none": functools.partial(given_away, reduction="none"),
}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_hooks_see_everything_that_is_held(subject):
    """Once what was saved is put elsewhere and forgotten, nothing that forward made is left but its results."""
    fn, args = SUBJECTS[subject]()
    hooks = Elsewhere()
    with Made() as made, hooks:
        ys = [y for y in as_tuple(fn(*args)) if y.requires_grad]
    graph = nodes(ys)
    assert graph
    assert [t for node in graph for t in tree_leaves(vars(node)) if isinstance(t, torch.Tensor)] == []
    del graph
    if "inplace" not in subject:
        # And so for the backward that is differentiated again.
        wrt = [a for a in args if a.requires_grad]
        with made, hooks:
            grads = torch.autograd.grad(ys, wrt, [torch.ones_like(y) for y in ys], create_graph=True, allow_unused=True)
        ys += [g for g in grads if g is not None]
        graph = nodes(y for y in ys)
        assert [t for node in graph for t in tree_leaves(vars(node)) if isinstance(t, torch.Tensor)] == []
        del graph
    hooks.saved.clear()
    assert made.held(*ys, *args) == 0


def forward(layers, h, w, t, **options):
    return layers.cross_entropy(layers.linear(h, w), t, **options)


def inputs():
    return torch.randn(ROWS, K, requires_grad=True), torch.randn(V, K, requires_grad=True), torch.randint(V, (ROWS,))


OPTIONS = [{}, {"reduction": "sum", "label_smoothing": 0.1}, {"reduction": "none"}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_loss_holds_one_array_of_the_logits_size_as_torchs_does(options, inplace):
    args = inputs()
    held = {}
    for name, run in {
        "native": functools.partial(forward, F),
        "lab": functools.partial(forward, lab, inplace=inplace),
    }.items():
        hooks = Elsewhere()
        with Made() as made, hooks:
            y = run(*args, **options)
        seen = hooks.bytes()
        held[name] = made.held(y, *args), seen
        hooks.saved.clear()
        assert made.held(y, *args) == 0
    # Beside the array three numbers a row are held, and the two divisors of a mean.
    few = 3 * ROWS * 4 + 8
    assert LOGITS <= held["lab"][0] <= held["native"][0] + few < 1.25 * LOGITS
    assert held["lab"][1] <= held["native"][1] + few


@pytest.mark.parametrize("options", [*OPTIONS, {"z_loss": 0.1}])
@pytest.mark.parametrize("inplace", [False, True])
def test_checkpoint_and_offload_hold_nothing_and_change_no_bit(options, inplace):
    args = inputs()
    run = functools.partial(forward, lab, inplace=inplace, **options)
    plain = torch.autograd.grad(3 * run(*args).sum(), args[:2])
    again = functools.partial(checkpoint, run, use_reentrant=False)
    with Made() as made:
        y = again(*args)
    assert made.held(y, *args) == 0
    assert all(map(torch.equal, torch.autograd.grad(3 * y.sum(), args[:2]), plain))
    with save_on_cpu():
        y = run(*args)
    assert all(map(torch.equal, torch.autograd.grad(3 * y.sum(), args[:2]), plain))
