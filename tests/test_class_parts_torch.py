"""Losses of classes in parts, put together by one process: what each rank of a group launches, without a group."""

import contextlib
import itertools

import pytest

torch = pytest.importorskip("torch")

import gradlab
from gradlab.kernels import cross_entropy_triton as kernels
from gradlab.kernels import linear_cross_entropy_triton as linear
from gradlab.kernels.class_losses.linear_second_triton import second_backward
from gradlab.kernels.class_losses.parts_triton import merge_parts
from gradlab.kernels.class_losses.settings import ClassLoss
from gradlab.kernels.runtime.launch_triton import gpu_sizes
from tests import kernel_launches

# Sizes of the parts of 37 classes: equal but for the last, of one class and none, one part past a tile.
SPLITS = ([13, 13, 11], [1, 0, 35, 1], [36, 1])
SETTINGS = (ClassLoss(-100, 0.0, 0.0), ClassLoss(5, 0.0, 2.0), ClassLoss(-1, 0.2, 0.0), ClassLoss(-100, 1.0, 3.0))
V = 37


def parts_of(sizes):
    """(slice of the classes, flat ClassPart) of each part."""
    firsts = [0, *itertools.accumulate(sizes)]
    return [(slice(f, f + n), [f, V]) for f, n in zip(firsts, sizes, strict=False)]


def close(got, want):
    # Sums of 37 terms of size about 1, in another order.
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13, equal_nan=True)


def rows(device, D=1, N=6):
    x = 3 * torch.randn(N, V, D, dtype=torch.float64, device=device)
    t = torch.randint(0, V, (N * D,), device=device)
    t[0], t[1], t[2] = 5, 0, 36
    return x, t


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("soft", [False, True])
def test_parts_of_a_row_make_the_whole_row(device, sizes, settings, soft):
    """Loss, backward and second backward, by columns that are slices; class weights, all options."""
    r = lambda *shape: torch.randn(*shape, dtype=torch.float64, device=device)
    x, t = rows(device, D=2)
    N, _, D = x.shape
    q = torch.rand_like(x) if soft else None
    t = None if soft else t
    a = torch.rand(V, dtype=torch.float64, device=device) if settings.softcap else None
    flat, at = settings.flat(), parts_of(sizes)

    def of(array, one):
        return None if array is None else array[:, one] if array.ndim == 3 else array[one]

    want = kernels.loss(x, t, q, a, flat)
    p = [kernels.loss(x[:, one], t, of(q, one), of(a, one), flat, part)[2] for one, part in at]
    y, n, s = (found[0] for found in merge_parts(torch.stack(p).unsqueeze(1), t if soft else t.unsqueeze(0), flat, V))
    for got, wanted in zip((y, n, s), want, strict=True):
        valid = slice(None) if soft else t != settings.ignore_index
        close(got[..., valid], wanted[..., valid])
    close(y, want[0])
    dy, dn, u = r(N * D), r(N * D), r(N, V, D)
    dx = kernels.backward(dy, dn, x, t, q, a, s, flat)
    ddy, ddn, d, dq = kernels.second_backward(u, dy, dn, x, t, q, a, s, flat)
    sums = []
    for one, part in at:
        close(kernels.backward(dy, dn, x[:, one], t, of(q, one), of(a, one), s, flat, part), dx[:, one])
        mine = u[:, one], dy, dn, x[:, one], t, of(q, one), of(a, one), s, flat, part
        sums.append(kernels.second_backward(*mine)[:3])
    total = [sum(term) for term in zip(*sums, strict=True)]
    close(total[0], ddy)
    close(total[1], ddn)
    for one, part in at:
        mine = u[:, one], dy, dn, x[:, one], t, of(q, one), of(a, one), s, flat, part
        *_, got, got_q = kernels.second_backward(*mine, total[2])
        close(got, d[:, one])
        if soft:
            close(got_q, dq[:, one])


def test_the_sanitizer_finds_nothing_in_parts():
    """With a CPU's tiles and a GPU's, in float32, every launch of `kernel_launches.parts`."""
    for tiles in (contextlib.nullcontext(), gpu_sizes()):
        with tiles, gradlab.sanitize() as report:
            kernel_launches.parts(torch.float32, torch.zeros)
        assert report.launches > 30


def test_rows_of_minus_infinity_and_classes_out_of_range(device):
    """A part that is all -inf adds nothing, the target there costs infinity; a class outside of all parts is NaN."""
    x, t = rows(device)
    x[0, :13] = x[1, 13:26] = x[2, 26:] = -torch.inf
    x[3] = -torch.inf
    t[3] = 4
    q = torch.zeros_like(x)
    q[:, 30] = 1.0
    flat = ClassLoss(-100, 0.0, 0.0).flat()
    for target in ((t, None), (None, q)):
        want, *_ = kernels.loss(x, *target, None, flat)
        sizes = parts_of(SPLITS[0])
        p = [
            kernels.loss(x[:, one], target[0], None if target[1] is None else q[:, one], None, flat, part)[2]
            for one, part in sizes
        ]
        whole = torch.stack(p).unsqueeze(1)
        y, _, s = merge_parts(whole, None if target[0] is None else t.unsqueeze(0), flat, V)
        close(y[0], want)
        assert torch.isinf(y[0, :3]).sum() == (2 if target[1] is None else 1)
        assert y[0, 3].isnan()
    t = t.clone()
    t[4], t[5] = V, -2
    y, _, s = merge_parts(whole, t.unsqueeze(0), flat, V)
    assert y[0, 4:].isnan().all()
    for one, part in sizes:
        dx = kernels.backward(y[0], None, x[:, one], t, None, None, s[0], flat, part)
        assert dx[4:].isnan().all()


@pytest.mark.parametrize("sizes", SPLITS, ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("tiles", ["cpu", "gpu"])
def test_parts_of_a_head_make_the_whole_head(device, sizes, settings, tiles):
    """linear_cross_entropy: loss, backward and second backward; two heads at once, weights, biases."""
    r = lambda *shape: torch.randn(*shape, dtype=torch.float64, device=device)
    Z, M, K = 2, 6, 5
    h, w, b, a = r(Z, M, K), r(Z, K, V), r(Z, V), torch.rand(Z, V, dtype=torch.float64, device=device)
    t = torch.randint(0, V, (Z, M), device=device)
    t[:, 0] = 5
    flat = settings.flat()
    uh, uw, ub, dy, dn = r(Z, M, K), r(Z, K, V), r(Z, V), r(Z, M), r(Z, M)

    def check():
        y, n, s, *_ = linear.loss(h, w, t, b, a, flat)
        at = [(lambda array, one=one: array[..., one], part) for one, part in parts_of(sizes)]
        p = torch.stack([linear.loss(h, of(w), t, of(b), of(a), flat, part)[2] for of, part in at])
        for got, want in zip(merge_parts(p, t, flat, V)[:2], (y, n), strict=True):
            close(got, want)
        needs = True, True, True, False
        dh, dw, db = linear.backward(dy, dn, h, w, t, b, a, s, flat, *needs)
        found = [linear.backward(dy, dn, h, of(w), t, of(b), of(a), s, flat, *needs, part) for of, part in at]
        close(sum(f[0] for f in found), dh)
        ddy, ddn, dh, d2w, d2b = second_backward(uh, uw, ub, dy, dn, h, w, t, b, a, s, flat, *needs)
        for (of, _), (_, got_w, got_b) in zip(at, found, strict=True):
            close(got_w, of(dw))
            close(got_b, of(db))
        mine = [(uh, of(uw), of(ub), dy, dn, h, of(w), t, of(b), of(a), s, flat, *needs, part) for of, part in at]
        sums = [sum(terms) for terms in zip(*(second_backward(*one)[:3] for one in mine), strict=True)]
        close(sums[0], ddy)
        close(sums[1], ddn)
        found = [second_backward(*one, sums[2]) for one in mine]
        close(sum(f[2] for f in found), dh)
        for (of, _), (*_, got_w, got_b) in zip(at, found, strict=True):
            close(got_w, of(d2w))
            close(got_b, of(d2b))

    if tiles == "cpu":
        check()
        return
    with gpu_sizes():
        check()
