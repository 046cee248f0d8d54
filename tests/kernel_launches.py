"""Every way in which the lab launches its Triton kernels: by the Specs' cases, and by calls that no case makes."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch

import gradlab.torch as lab
from gradlab.kernels import cross_entropy_triton, linear_cross_entropy_triton
from gradlab.kernels.class_losses import class_range_triton, linear_second_triton
from gradlab.kernels.class_losses.parts_triton import merge_parts
from gradlab.kernels.class_losses.row_sums_triton import mean_divisors
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.common.matmul_triton import matmul_into
from gradlab.kernels.runtime.launch_triton import recording
from gradlab.kernels.spec import specs
from gradlab.profiling.machine_code import launches_torch


class Variant(NamedTuple):
    """A kernel as one launch has it: Triton's source, which holds the constants, and the options."""

    source: launches_torch.Source
    warps: int
    stages: int


def variants(dtype: str, arch: str) -> Iterator[Variant]:
    """What the checked cases of every op launch in a dtype on an architecture, and what CALLS launch."""
    for op in specs().values():
        for case in op.select("check"):
            for found in launches_torch.find(op.at(case), dtype, arch):
                yield Variant(found.source, found.warps, found.stages)
    for call in CALLS:
        with recording(arch) as launches, launches_torch.NoValues():
            call(getattr(torch, dtype))
        for launch in launches:
            yield Variant(launches_torch.source(launch), launch.warps, launch.stages)


# The second of three equal parts of 96 classes.
PART = [32, 96]


def leaf(dtype, *shape, strides=None):
    """Memory that nobody touches, of any strides; it requires a gradient."""
    made = torch.empty(shape, dtype=dtype) if strides is None else torch.empty_strided(shape, strides, dtype=dtype)
    return made.requires_grad_()


def pulled(y):
    """The backward of y, with a cotangent of its strides."""
    y.backward(torch.empty_strided(y.shape, y.stride(), dtype=y.dtype))


def classes(*shape, of=torch.int64):
    return torch.zeros(shape, dtype=of)


def losses(dtype):
    """Gradients over the logits and beside them, rows too long to be held, pixels, channels last, classes of a byte."""
    for inplace, reduction in itertools.product((False, True), ("mean", "sum", "none")):
        x = leaf(dtype, 4, 32)
        pulled(lab.cross_entropy(x * 1, classes(4), inplace=inplace, reduction=reduction))
    for inplace, V in itertools.product((False, True), (32, 20000)):
        # Not every pair of options: with all of them, and with none.
        everything = {"z_loss": 0.1, "softcap": 2.0, "label_smoothing": 0.1, "weight": torch.empty(V, dtype=dtype)}
        for options in ({}, everything):
            for target in (classes(4), torch.zeros(4, V, dtype=dtype)):
                pulled(lab.cross_entropy(leaf(dtype, 4, V) * 1, target, inplace=inplace, **options))
    # Rows that are walked over, of 16 bits and of 32: held, at odd places, with all options that they have.
    for of, V in itertools.product((torch.bfloat16, torch.float32), (1024, 20001)):
        every = {"z_loss": 0.1, "softcap": 2.0, "label_smoothing": 0.1, "reduction": "sum"}
        for inplace, options in ((False, {}), (True, {}), (True, every)):
            pulled(lab.cross_entropy(leaf(of, 4, V) * 1, classes(4), inplace=inplace, **options))
        pulled(lab.cross_entropy((leaf(of, 4, V) * 1)[:, 1:], classes(4), torch.empty(V - 1, dtype=of), softcap=2.0))
    pulled(lab.cross_entropy(leaf(dtype, 4, 1024) * 1, classes(4), torch.empty(1024, dtype=dtype), inplace=True))
    pulled(lab.cross_entropy(leaf(dtype, 2, 5, 4), classes(2, 4)))
    pulled(lab.cross_entropy(leaf(dtype, 4, 32), classes(4, of=torch.uint8)))
    for narrow in (torch.uint8, torch.int32, torch.int64):
        class_range_triton.out_of_range(classes(6, of=narrow), 5, -100)


def long_rows(dtype):
    """Classes in rows that a program holds, or walks over, aligned and not, with what a loss can have and without."""
    for inplace, V in itertools.product((False, True), (8192, 20000, 20001)):
        weight = torch.empty(V, dtype=dtype)
        for options in ({"softcap": 2.0, "z_loss": 0.1, "label_smoothing": 0.1}, {"weight": weight, "softcap": 2.0}):
            pulled(lab.cross_entropy(leaf(dtype, 4, V) * 1, classes(4), inplace=inplace, **options))
        pulled(lab.cross_entropy(leaf(dtype, 4, V) * 1, classes(4), inplace=inplace))
    pulled(lab.cross_entropy(leaf(dtype, 4, 8192) * 1, classes(4), inplace=True, reduction="sum"))
    # Rows apart, whose gradient's are not.
    pulled(lab.cross_entropy(leaf(dtype, 4, 20000, strides=(20001, 1)), classes(4)))
    for V in (8192, 20001):
        for smoothing in (0.0, 0.1):
            flat, x = ClassLoss(-100, smoothing, 2.0).flat(), torch.empty(4, V, 1, dtype=dtype)
            p = cross_entropy_triton.loss(x, classes(4), None, None, flat, [V, 3 * V])[2]
            y, n, s = merge_parts(p.expand(3, 1, *p.shape), classes(1, 4), flat, 3 * V)
            cross_entropy_triton.backward(y[0], n[0], x, classes(4), None, None, s[0], flat, [V, 3 * V])


def parts(dtype, make=torch.empty):
    """What a rank of a group launches on its part of the classes, all options and none; merged, and added up."""
    for soft, every in itertools.product((False, True), repeat=2):
        flat = ClassLoss(-100, 0.1, 2.0).flat() if every else ClassLoss(-100, 0.0, 0.0).flat()
        x, q = (make(4, 32, 1, dtype=dtype) for _ in range(2))
        t, q = (None, q) if soft else (classes(4), None)
        a = make(32, dtype=dtype) if every else None
        p = cross_entropy_triton.loss(x, t, q, a, flat, PART)[2]
        y, n, s = merge_parts(p.expand(3, 1, *p.shape), None if soft else t.unsqueeze(0), flat, 96)
        dn = n[0] if every else None
        cross_entropy_triton.backward(y[0], dn, x, t, q, a, s[0], flat, PART)
        given = make(x.shape, dtype=dtype), y[0], dn, x, t, q, a, s[0], flat, PART
        sums = cross_entropy_triton.second_backward(*given)[2]
        cross_entropy_triton.second_backward(*given, sums)
    plain, x = ClassLoss(-100, 0.1, 0.0).flat(), make(4, 1030, 1, dtype=dtype)
    y, n, s = cross_entropy_triton.loss(x, classes(4), None, None, plain)
    cross_entropy_triton.loss(x, classes(4), None, None, plain, [32, 4000])
    cross_entropy_triton.backward(y, n, x, classes(4), None, None, s, plain, [32, 4000])
    mean_divisors(classes(4), make(32, dtype=dtype), 32, -100, False, 32)
    for V, every in itertools.product((32, 700), (False, True)):
        flat = ClassLoss(-100, 0.1, 2.0).flat() if every else ClassLoss(-100, 0.0, 0.0).flat()
        h, w = make(1, 16, 20, dtype=dtype), make(1, 20, V, dtype=dtype)
        b, a = (make(1, V, dtype=dtype) if every else None for _ in range(2))
        t, part, needs = classes(1, 16), [V, 3 * V], (True, True, True, False)
        p, x = linear_cross_entropy_triton.loss(h, w, t, b, a, flat, part, V if every else 0)[2:4]
        y, n, s = merge_parts(p.expand(3, *p.shape), t, flat, 3 * V)
        dn = n if every else None
        linear_cross_entropy_triton.backward(y, dn, h, w, t, b, a, s, flat, *needs, part, x if every else None)
        given = h, w, b, y, dn, h, w, t, b, a, s, flat, *needs, part
        sums = linear_second_triton.second_backward(*given)[2]
        linear_second_triton.second_backward(*given, sums)


def derivatives(dtype):
    """Derivatives of the third order, of all that has them."""
    for fn in (lab.sigmoid, lab.tanh):
        x = leaf(dtype, 40)
        y = fn(x)
        for _ in range(3):
            (y,) = torch.autograd.grad(y, x, torch.empty_like(y), create_graph=True)
    x, t = leaf(dtype, 40), leaf(dtype, 40)
    y = lab.binary_cross_entropy_with_logits(x, t, reduction="none")
    for of in (x, t, x):
        (y,) = torch.autograd.grad(y, of, torch.empty_like(y), create_graph=True)


def chunks_of_classes(dtype):
    """Classes in several programs a row, whose statistics a second kernel merges; whole tiles of K."""
    for K, more in ((64, {}), (20, {"softcap": 3.0, "label_smoothing": 0.1, "weight": torch.empty(700, dtype=dtype)})):
        h, w, b = leaf(dtype, 16, K), leaf(dtype, 700, K), leaf(dtype, 700) if more else None
        pulled(lab.linear_cross_entropy(h, w, classes(16), b, **more))


def skipped_tiles(dtype):
    """Tiles of the gradient left out, in chunks and in one; what is asked for; kept logits."""
    h, w = leaf(dtype, 2048, 64), leaf(dtype, 2100, 64)
    pulled(lab.linear_cross_entropy(h, w, classes(2048), skip_below=0.1))
    for V, more in ((1100, {"logits_memory": 2**20}), (2500, {"softcap": 3.0, "z_loss": 0.1})):
        h, w, b = leaf(dtype, 16, 64), leaf(dtype, V, 64), leaf(dtype, V) if "z_loss" in more else None
        pulled(lab.linear_cross_entropy(h, w, classes(16), b, skip_below=0.1, **more))
        pulled(lab.linear_cross_entropy(h, w.detach(), classes(16), skip_below=0.1))
        pulled(lab.linear_cross_entropy(h.detach(), w, classes(16), skip_below=0.1))


def steps(dtype):
    """Functional steps whose rate is a number."""
    p = leaf(dtype, 40)
    pulled(lab.adam_step(p, p, p, p, step=1)[0])


def edges(dtype):
    """Whole tiles and one that is not, whose edge lies at no multiple of 16."""
    x, t = leaf(dtype, 4097), leaf(dtype, 4097)
    for fn in (lab.relu, lab.sigmoid, lab.tanh):
        pulled(fn(x))
    weights = {"weight": torch.empty(4097, dtype=dtype), "pos_weight": torch.empty(4097, dtype=dtype)}
    for reduction in ("mean", "none"):
        pulled(lab.mse_loss(x, t, reduction=reduction))
        y = lab.binary_cross_entropy_with_logits(x, t, reduction=reduction, **weights)
        (dx,) = torch.autograd.grad(y, x, torch.empty_like(y), create_graph=True)
        pulled(dx)


def products(dtype):
    """Whole tiles of K; a bias and a mask; tiles so many that a program has several, and so few that K is split.

    A product added to the array that it is written to, in tiles of either size and in parts.
    """
    pulled(lab.linear(leaf(dtype, 4096, 64), leaf(dtype, 4096, 64)))
    for size, K in ((4096, 64), (128, 8192)):
        y, a, b = (torch.empty(shape, dtype=dtype) for shape in ((size, size), (size, K), (K, size)))
        matmul_into(y, a, b, y)
    matmul_into(y, a, b, y[0], relu=True)
    for masked, mask in (("a", a), ("b", b), ("y", y)):
        matmul_into(y, a, b, None, mask, masked)
    x, w, b = leaf(dtype, 16, 64), leaf(dtype, 32, 64), leaf(dtype, 32)
    pulled(lab.linear(x, w, b))
    pulled(lab.linear(x, w, b, activation="relu"))


def images(dtype):
    """Many channels and few; channels last and first; offsets within 32 bits and past them, of images far apart.

    Half precision takes other kernels than the rest: each dtype brings one of the other kind along.
    """
    half = dtype in (torch.float16, torch.bfloat16)
    for kind in (dtype, torch.float32 if half else torch.float16):
        for far, last, groups in itertools.product((False, True), (False, True), (1, 4, 32)):
            strides = (2**30 if far else 32 * 64, *((1, 32 * 8, 32) if last else (64, 8, 1)))

            def image(size=8, strides=strides, kind=kind):
                return leaf(kind, 2, 32, size, size, strides=strides)

            for activation, window in itertools.product((None, "relu"), (3, 1)):
                w, b = leaf(kind, 64, 32 // groups, window, window), leaf(kind, 64)
                y = lab.conv2d(image(), w, b, groups=groups, padding=window // 2, activation=activation)
                (dx,) = torch.autograd.grad(y, w, torch.empty_like(y).requires_grad_(), create_graph=True)
                dx.backward(torch.empty_like(dx))
            pulled(lab.conv2d(image(), w, stride=2, groups=groups))
            x = image()
            (dx,) = torch.autograd.grad(lab.max_pool2d(x, 2), x, image(4), create_graph=True)
            dx.backward(image().detach())
        for filters in (24, 8):
            # Rows apart, channels that are no multiple of 16, and filters too few for tensor cores.
            x, w = leaf(kind, 2, 24, 8, 8, strides=(24 * 128, 128, 16, 1)), leaf(kind, filters, 24, 3, 3)
            y = lab.conv2d(x, w, padding=1, activation="relu")
            dx, dw = torch.autograd.grad(y, (x, w), torch.empty_like(y).requires_grad_(), create_graph=True)
            torch.autograd.backward((dx, dw), (torch.empty_like(dx), torch.empty_like(dw)))


def optimizers(dtype):
    """All that a step can have: a launch each, for one tensor and for two; tensors at odd addresses among them."""
    one = torch.ones(())
    for offset, T, make in itertools.product((0, 1), (1, 2), STEPS):
        ps = parameters(dtype, T, offset)
        optimizer = make(ps)
        optimizer.step()
        if isinstance(optimizer, torch.optim.Adam):
            optimizer.grad_scale, optimizer.found_inf = one, one * 0
            optimizer.step()
        lab.clip_grad_norm_(ps, 1.0)


def parameters(dtype, T, offset=0):
    """T parameters with gradients, so many elements past an aligned address."""
    ps = [torch.empty(41, dtype=dtype)[offset:].requires_grad_() for _ in range(T)]
    for p in ps:
        p.grad = torch.empty(41, dtype=dtype)[offset:]
    return ps


def masters(dtype):
    """Master weights, of both halves: each has its own rounding."""
    for half, more in ((torch.float16, {}), (torch.bfloat16, {"amsgrad": True, "state_dtype": torch.bfloat16})):
        for T in (1, 2):
            lab.Adam(parameters(half, T), master_weights=True, **more).step()


STEPS = (
    lambda ps: lab.SGD(ps, max_norm=1.0),
    lambda ps: lab.SGD(ps, momentum=0.9),
    lambda ps: lab.Adam(ps, max_norm=1.0),
    lambda ps: lab.Adam(ps, lr=torch.tensor(0.1), amsgrad=True, fused=True),
    lambda ps: lab.Adam(ps, amsgrad=True, state_dtype=torch.bfloat16),
    lambda ps: lab.Adam(ps, state_dtype=torch.bfloat16),
)

CALLS = (
    losses,
    long_rows,
    parts,
    derivatives,
    edges,
    chunks_of_classes,
    skipped_tiles,
    steps,
    products,
    images,
    optimizers,
    masters,
)
