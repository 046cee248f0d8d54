"""torch in the first minute on a GPU: what no Spec's case launches, and which kernels were."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

import gradlab.torch as lab
from gradlab.autodiff.frameworks.side_torch import SIDE
from gradlab.kernels import cross_entropy_triton
from gradlab.kernels.class_losses.parts_triton import merge_parts
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.runtime import launch_triton
from gradlab.profiling.machine_code.launches_torch import every_kernel


def gpu() -> torch.device:
    """torch's default device: CUDA where there is one."""
    return torch.device(SIDE.device())


def cpu() -> torch.device:
    """Where kernels are interpreted."""
    return torch.device("cpu")


def put(array: np.ndarray, dtype: str, where: torch.device) -> torch.Tensor:
    """An array on a device, floats in `dtype`."""
    return SIDE.put(array, dtype, like=torch.empty(0, device=where, dtype=torch.int64))


take = SIDE.take


def kernels() -> set[str]:
    """The names of all kernels that are launched, with their files."""
    return {_name(k) for k in every_kernel() if k.fn.__name__.endswith("_kernel")}


@contextmanager
def counted() -> Iterator[set[str]]:
    """The names of the kernels that run within it."""
    names: set[str] = set()
    with launch_triton.noting(lambda jit: names.add(_name(jit))):
        yield names


def _name(jit: Any) -> str:
    return f"{jit.fn.__module__.rpartition('.')[2]}.{jit.fn.__name__}"


def _drawn(where: torch.device, *shape: int, seed: int = 0) -> torch.Tensor:
    return put(np.random.default_rng(seed).standard_normal(shape), "float32", where).requires_grad_()


def _classes(where: torch.device, M: int, V: int) -> torch.Tensor:
    return put(np.random.default_rng(9).integers(0, V, M), "float32", where)


def _steps(where: torch.device, make: Callable[[list[torch.Tensor]], Any]) -> tuple[torch.Tensor, ...]:
    """Parameters after two steps, one larger than a chunk."""
    params = [_drawn(where, 3000), _drawn(where, 7, 3, seed=1)]
    optimizer = make(params)
    for seed in (2, 3):
        for p in params:
            p.grad = _drawn(where, *p.shape, seed=seed).detach()
        optimizer.step()
    return tuple(p.detach() for p in params)


def _clipped(where: torch.device) -> tuple[torch.Tensor, ...]:
    """The norms of one tensor and of two, and the gradients that they shorten."""
    results: list[torch.Tensor] = []
    for sizes in ((3000,), (3000, 21)):
        params = [_drawn(where, size) for size in sizes]
        for p in params:
            p.grad = _drawn(where, *p.shape, seed=1).detach()
        results += [lab.clip_grad_norm_(params, 1.0), *(p.grad for p in params if p.grad is not None)]
    return tuple(results)


def _in_place(where: torch.device) -> tuple[torch.Tensor, ...]:
    """Losses whose gradients take the logits' memory, in short rows and in long ones, and backwards that scale them."""
    results: list[torch.Tensor] = []
    for V in (300, 20_000):
        x = _drawn(where, 8, V)
        y = lab.cross_entropy(x * 1.0, _classes(where, 8, V), inplace=True)
        results += [y.detach(), *torch.autograd.grad(3 * y, x)]
    return tuple(results)


def _long_rows(where: torch.device) -> tuple[torch.Tensor, ...]:
    """Rows that no program holds."""
    x = _drawn(where, 4, 20_000)
    y = lab.cross_entropy(x, _classes(where, 4, 20_000))
    return y.detach(), *torch.autograd.grad(y, x)


def _many_classes(where: torch.device) -> tuple[torch.Tensor, ...]:
    """Classes in several programs a row, merged by a kernel of its own."""
    h, w = _drawn(where, 40, 72), _drawn(where, 700, 72, seed=1)
    y = lab.linear_cross_entropy(h, w, _classes(where, 40, 700))
    return y.detach(), *torch.autograd.grad(y, (h, w))


def _skipped_tiles(where: torch.device) -> tuple[torch.Tensor, ...]:
    """Rows that are sure of their classes, so that most tiles of the logits' gradient count as 0."""
    h, w = _drawn(where, 200, 72), _drawn(where, 700, 72, seed=1)
    # The head of a class is the sum of its four rows, and little else.
    t, own = torch.arange(200, device=where) // 4, torch.zeros(700, 200, device=where)
    own[t, torch.arange(200, device=where)] = 40.0
    with torch.no_grad():
        w.mul_(0.1).add_(own @ h, alpha=1 / 72)
    y = lab.linear_cross_entropy(h, w, t, skip_below=1e-3)
    return y.detach(), *torch.autograd.grad(y, (h, w))


def _columns(where: torch.device) -> tuple[torch.Tensor, ...]:
    """Losses row by row, whose sum's backward has the rows' cotangents, twice."""
    x, t = _drawn(where, 8, 300), _classes(where, 8, 300)
    y = lab.cross_entropy(x, t, reduction="none")
    (dx,) = torch.autograd.grad(y, x, _drawn(where, 8, seed=4), create_graph=True)
    return y.detach(), dx.detach(), *torch.autograd.grad(dx, x, _drawn(where, 8, 300, seed=5))


def _in_parts(where: torch.device) -> tuple[torch.Tensor, ...]:
    """A loss of which each third of the classes is on a rank of its own, and its gradient."""
    x, t = _drawn(where, 8, 300).detach().unsqueeze(-1), _classes(where, 8, 300)
    loss = ClassLoss(-100, 0.0, 0.0).flat()
    parts = [(x[:, first : first + 100], [first, 300]) for first in (0, 100, 200)]
    sums = [cross_entropy_triton.loss(one, t, None, None, loss, part)[2] for one, part in parts]
    y, _, s = merge_parts(torch.stack(sums).unsqueeze(1), t.unsqueeze(0), loss, 300)
    dy = _drawn(where, 8, seed=4).detach()
    dx = [cross_entropy_triton.backward(dy, None, one, t, None, None, s[0], loss, part) for one, part in parts]
    return y, torch.cat(dx, 1)


def _tiles(where: torch.device) -> tuple[torch.Tensor, ...]:
    """A product of several tiles along every axis, none of them whole."""
    x, w, b = _drawn(where, 200, 328), _drawn(where, 136, 328, seed=1), _drawn(where, 136, seed=2)
    y = lab.linear(x, w, b, activation="relu")
    return y.detach(), *torch.autograd.grad(y, (x, w, b), _drawn(where, 200, 136, seed=3))


def _few_tiles(where: torch.device) -> tuple[torch.Tensor, ...]:
    """A product of few tiles and a long K, in parts that a second kernel adds."""
    x, w, b = _drawn(where, 24, 3000), _drawn(where, 40, 3000, seed=1), _drawn(where, 40, seed=2)
    return (lab.linear(x, w, b, activation="relu").detach(),)


def _channels_last(where: torch.device) -> tuple[torch.Tensor, ...]:
    """Images that lie channels last, of more than one tile."""
    x = _drawn(where, 2, 32, 12, 12).detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    w = _drawn(where, 48, 32, 3, 3, seed=1)
    y = lab.max_pool2d(lab.conv2d(x, w, padding=1), 2)
    assert isinstance(y, torch.Tensor)
    return y.detach(), *torch.autograd.grad(y, (x, w), _drawn(where, 2, 48, 6, 6, seed=2))


def _half_images(where: torch.device) -> tuple[torch.Tensor, ...]:
    """Images in half precision, whose convolution takes other kernels than float32."""
    x, w = (_drawn(where, *shape).to(torch.bfloat16) for shape in ((2, 32, 12, 12), (48, 32, 3, 3)))
    y = lab.conv2d(x, w, padding=1, activation="relu")
    dy = _drawn(where, 2, 48, 12, 12, seed=2).to(torch.bfloat16)
    return y.detach().float(), *(g.float() for g in torch.autograd.grad(y, (x, w), dy))


# As many terms of float32 are off by what one rounding to bfloat16 is.
_HALF = 2**16
# A name, a call that gives results on a device, and the terms of its longest sum.
CALLS = (
    ("Adam", lambda where: _steps(where, lambda ps: lab.Adam(ps, lr=0.01, amsgrad=True, max_norm=1.0)), 3021),
    ("SGD", lambda where: _steps(where, lambda ps: lab.SGD(ps, lr=0.01, momentum=0.9)), 1),
    ("clip_grad_norm_", _clipped, 3021),
    ("cross_entropy in place", _in_place, 20_000),
    ("cross_entropy of long rows", _long_rows, 20_000),
    ("cross_entropy of rows", _columns, 300),
    ("cross_entropy of classes in parts", _in_parts, 300),
    ("linear_cross_entropy of many classes", _many_classes, 700),
    ("linear_cross_entropy with tiles skipped", _skipped_tiles, 700),
    ("linear of several tiles", _tiles, 328),
    ("linear of few tiles", _few_tiles, 3000),
    ("conv2d and max_pool2d channels last", _channels_last, 432),
    ("conv2d in half precision", _half_images, _HALF),
)
