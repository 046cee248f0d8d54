"""cross_entropy on torch: values, both derivatives, ignored rows, extreme logits, bad input."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

import gradlab.torch as lab
from gradlab.kernels import cross_entropy_triton as kernels
from gradlab.kernels.class_losses import backward_triton, in_place_triton
from gradlab.kernels.class_losses import class_range_triton as classes
from gradlab.kernels.runtime.launch_triton import gpu_sizes

# Options of the kernels: nothing ignored but -100, no smoothing, no cap.
PLAIN = [-100, 0.0, 0.0]

REDUCTION = pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
IGNORE = pytest.mark.parametrize("ignore", [-100, -1, 2, None])


def drawn(M, V, device, dtype=torch.float64, ignore=None, spread=3.0):
    x = (spread * torch.randn(M, V, dtype=torch.float64, device=device)).to(dtype).requires_grad_()
    t = torch.randint(0, V, (M,), device=device)
    if ignore is not None:
        t[::3] = ignore
    return x, t


def close(got, wanted, terms, eps=2.0**-53):
    scale = max(wanted.abs().max().item() if wanted.numel() else 0.0, 1.0)
    torch.testing.assert_close(got.double(), wanted.double(), rtol=0, atol=2 * (8 + terms) * eps * scale)


@REDUCTION
@IGNORE
def test_values_and_gradients(device, reduction, ignore):
    x, t = drawn(7, 5, device, ignore=ignore)
    options = {"reduction": reduction} | ({} if ignore is None else {"ignore_index": ignore})
    y, wanted = lab.cross_entropy(x, t, **options), F.cross_entropy(x, t, **options)
    close(y, wanted, 12)
    # A cotangent other than 1, and a different one for each row.
    dy = torch.randn_like(y)
    close(torch.autograd.grad(y, x, dy)[0], torch.autograd.grad(wanted, x, dy)[0], 12)


@REDUCTION
@IGNORE
def test_gradcheck_and_gradgradcheck(device, reduction, ignore):
    x, t = drawn(4, 3, device, ignore=ignore)

    def fn(x):
        return lab.cross_entropy(x, t, reduction=reduction, ignore_index=-100 if ignore is None else ignore)

    assert gradcheck(fn, (x,))
    assert gradgradcheck(fn, (x,))


@REDUCTION
def test_hessian_is_the_natives(device, reduction):
    x, t = drawn(4, 3, device, ignore=-100)
    weight = torch.randn(4, dtype=torch.float64, device=device) if reduction == "none" else 2.5

    def hessian(layer):
        return torch.autograd.functional.hessian(lambda x: (weight * layer(x, t, reduction=reduction)).sum(), x)

    wanted = hessian(F.cross_entropy)
    assert wanted.abs().max() > 0
    close(hessian(lab.cross_entropy), wanted, 12)


def test_third_derivative_is_refused_not_lost(device):
    x, t = drawn(2, 3, device)
    (g,) = torch.autograd.grad(lab.cross_entropy(x, t), x, create_graph=True)
    (h,) = torch.autograd.grad(g.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="cross_entropy: its third derivative is not implemented"):
        h.sum().backward()


@pytest.mark.parametrize("shift", [1e4, -1e4, 200.0, -200.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_shifted_logits(device, shift, dtype):
    """A maximum that starts at 0 and not at -inf gives inf here; a log-sum-exp kept whole loses digits."""
    eps = torch.finfo(dtype).eps / 2
    x, t = drawn(5, 6, device, dtype)
    x = (x.detach() + shift).requires_grad_()
    y, wanted = lab.cross_entropy(x, t, reduction="none"), F.cross_entropy(x.double(), t, reduction="none")
    close(y, wanted, 6, eps)
    close(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(wanted.sum(), x)[0], 6, eps)


def test_rows_of_minus_infinity(device):
    x = torch.full((3, 5), -float("inf"), device=device, dtype=torch.float64)
    x[0, 1], x[1, 0], x[1, 3] = 0.3, 1.0, 2.0
    x[2] = 1.0
    t = torch.tensor([1, 3, 0], device=device)
    x.requires_grad_()
    y, wanted = lab.cross_entropy(x, t, reduction="none"), F.cross_entropy(x, t, reduction="none")
    close(y, wanted, 5)
    close(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(wanted.sum(), x)[0], 5)


@REDUCTION
def test_every_row_ignored(device, reduction):
    x = torch.randn(3, 4, device=device, requires_grad=True)
    t = torch.full((3,), -100, device=device)
    y, wanted = lab.cross_entropy(x, t, reduction=reduction), F.cross_entropy(x, t, reduction=reduction)
    torch.testing.assert_close(y, wanted, equal_nan=True)
    got = torch.autograd.grad(y.sum(), x)[0]
    assert torch.equal(got, torch.zeros_like(x))


@REDUCTION
def test_no_rows(device, reduction):
    x, t = torch.zeros(0, 4, device=device, requires_grad=True), torch.zeros(0, dtype=torch.long, device=device)
    y, wanted = lab.cross_entropy(x, t, reduction=reduction), F.cross_entropy(x, t, reduction=reduction)
    torch.testing.assert_close(y, wanted, equal_nan=True)
    assert torch.autograd.grad(y.sum(), x)[0].shape == (0, 4)


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_any_strides(device, layout):
    x, t = drawn(6, 6, device)
    x = {
        "transposed": lambda: x.detach().t(),
        "sliced": lambda: x.detach()[::2].repeat(2, 1)[:, ::2],
        "expanded": lambda: x.detach()[:1].expand(6, 6),
    }[layout]().requires_grad_()
    t = (t % x.shape[1]).repeat(2)[::2]
    u = torch.randn(x.shape[1], x.shape[0], dtype=torch.float64, device=device).t()

    def both(layer):
        y = layer(x, t, reduction="none")
        (g,) = torch.autograd.grad(y, x, torch.ones((), device=device, dtype=y.dtype).expand_as(y), create_graph=True)
        return y, g, torch.autograd.grad(g, x, u)[0]

    for got, want in zip(both(lab.cross_entropy), both(F.cross_entropy), strict=True):
        close(got, want, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_programs_and_partial_tiles(device, dtype, monkeypatch):
    for module in (kernels, backward_triton, in_place_triton):
        monkeypatch.setattr(module, "tile", lambda x: (2, 16))
    x, t = drawn(7, 41, device, dtype, ignore=-100)
    y = lab.cross_entropy(x, t)
    wide = x.detach().double().requires_grad_()
    wanted = F.cross_entropy(wide, t)
    eps = 2.0**-24 if dtype == torch.float32 else 2.0**-8
    torch.testing.assert_close(y.double(), wanted, rtol=60 * 2.0**-24 + eps, atol=0)
    (g,) = torch.autograd.grad(y, x, create_graph=True)
    (wanted_g,) = torch.autograd.grad(wanted, wide, create_graph=True)
    u = torch.randn_like(x)
    for got, want in (
        (g, wanted_g),
        *[(torch.autograd.grad(a, b, u.to(b.dtype))[0] for a, b in ((g, x), (wanted_g, wide)))],
    ):
        assert (got.double() - want).abs().max() <= (60 * 2.0**-24 + eps) * max(want.abs().max().item(), 0.25)


def test_same_bits_and_nothing_changed(device):
    x, t = drawn(9, 5, device, torch.float32)
    before = x.detach().clone(), t.clone()
    y = lab.cross_entropy(x, t)
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    second = torch.autograd.grad(y, x)[0]
    assert torch.equal(first, second)
    assert torch.equal(first, torch.autograd.grad(lab.cross_entropy(x, t), x)[0])
    assert torch.equal(x.detach(), before[0])
    assert torch.equal(t, before[1])


LAYOUTS = {"rows": (5, 6), "pixels": (2, 4, 3), "voxels": (2, 5, 2, 2), "one row": (6,)}


def composed(x, target, weight, ignore, reduction, smoothing, z_loss, softcap):
    """The loss and its z-part, of torch's own functions."""
    h = x if softcap is None else softcap * torch.tanh(x / softcap)
    kinds = {"reduction": reduction, "label_smoothing": smoothing}
    if not target.is_floating_point():
        kinds["ignore_index"] = ignore
    valid = torch.ones(()) if target.is_floating_point() else target != ignore
    z = z_loss * torch.logsumexp(h, 0 if x.ndim == 1 else 1) ** 2 * valid
    count = valid.sum() if valid.ndim else z.numel()
    z = {"none": lambda: z, "sum": z.sum, "mean": lambda: z.sum() / count}[reduction]()
    return F.cross_entropy(h, target, weight, **kinds) + z, z


@settings(max_examples=60)
@given(
    layout=st.sampled_from(list(LAYOUTS)),
    soft=st.booleans(),
    weighed=st.booleans(),
    ignore=st.sampled_from([-100, -1, 2]),
    reduction=st.sampled_from(["none", "mean", "sum"]),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    z_loss=st.sampled_from([0.0, 0.2]),
    returned=st.booleans(),
    softcap=st.sampled_from([None, 1.5]),
    inplace=st.booleans(),
    seed=st.integers(0, 9),
)
def test_every_option_with_every_other(
    layout, soft, weighed, ignore, reduction, smoothing, z_loss, returned, softcap, inplace, seed
):
    g = torch.Generator().manual_seed(seed)
    r = lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64)
    shape = LAYOUTS[layout]
    V = shape[min(1, len(shape) - 1)]
    x = (3 * r(*shape)).requires_grad_()
    weight = r(V).abs() + 0.1 if weighed else None
    if soft:
        ignore, target = -100, (r(*shape).abs() / V).requires_grad_(not inplace)
    else:
        target = torch.randint(0, V, shape[:1] + shape[2:] if len(shape) > 1 else (), generator=g)
        if target.ndim:
            target.flatten()[1::3] = ignore
    wrt = [x, target] if soft and not inplace else [x]
    options = {"ignore_index": ignore, "reduction": reduction, "label_smoothing": smoothing, "z_loss": z_loss}
    logits = x * 1.0 if inplace else x
    found = lab.cross_entropy(
        logits, target, weight, **options, return_z_loss=returned, softcap=softcap, inplace=inplace
    )
    wanted = composed(x, target, weight, ignore, reduction, smoothing, z_loss, softcap)
    found = found if returned else (found, found.detach() * 0)
    # A cotangent for each, other than 1 and different for each row.
    c, e = r(*wanted[0].shape), r(*wanted[0].shape) * returned
    ours, theirs = (sum((k * y).sum() for k, y in zip((c, e), both, strict=True)) for both in (found, wanted))
    close(found[0], wanted[0], 20)
    close(ours, theirs, 20)
    firsts = [torch.autograd.grad(y, wrt, create_graph=not inplace) for y in (ours, theirs)]
    for got, want in zip(*firsts, strict=True):
        close(got, want, 40)
    if inplace:
        return
    us = [r(*t.shape) for t in wrt]
    seconds = [torch.autograd.grad(list(ds), wrt, us, allow_unused=True) for ds in firsts]
    for got, want in zip(*seconds, strict=True):
        close(got, want, 80)


@pytest.mark.parametrize("V", [1, 2, 41, 1000, 32769, 262144])
@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_vocabularies_of_any_size_far_from_zero(V, shift):
    """Padded lanes must not enter: at V = 41 and a cap of 1 each would add exp(-1)."""
    x = (3 * torch.randn(2, V, dtype=torch.float64)).requires_grad_()
    t = torch.tensor([0, V - 1])
    options = {"label_smoothing": 0.1, "reduction": "sum"}
    y, wanted = lab.cross_entropy(x + shift, t, **options), F.cross_entropy(x + shift, t, **options)
    # The shift itself rounds x to a step of 2^-39.
    close(y, wanted, V, 2.0**-53 if shift == 0 else 2.0**-39)
    close(torch.autograd.grad(y, x)[0], torch.autograd.grad(wanted, x)[0], V, 2.0**-53 if shift == 0 else 2.0**-39)
    if V <= 1000:
        u = torch.randn_like(x)
        again = [
            torch.autograd.grad(torch.autograd.grad(f(x + shift, t), x, create_graph=True)[0], x, u)[0]
            for f in (lab.cross_entropy, F.cross_entropy)
        ]
        close(*again, V, 2.0**-53 if shift == 0 else 2.0**-39)
    capped, wanted = lab.cross_entropy(x, t, softcap=1.0), F.cross_entropy(torch.tanh(x), t)
    close(capped, wanted, V)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_classes_in(dtype):
    x, t = drawn(4, 5, "cpu")
    close(lab.cross_entropy(x[..., None], t[:, None].to(dtype)), F.cross_entropy(x, t), 9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cap_far_above_half_precisions_logits_changes_nothing(dtype):
    """By 1 - 2 / (1 + exp(2 x / cap)) those below cap 2^-24 would be 0."""
    x = torch.randn(3, 1024).to(dtype).requires_grad_()
    t = torch.tensor([0, 5, 1023])
    with gpu_sizes():
        plain, capped = (lab.cross_entropy(x, t, softcap=cap, reduction="none") for cap in (None, 1e8))
        gradients = [torch.autograd.grad(y.sum(), x)[0].float() for y in (plain, capped)]
    step = torch.finfo(dtype).eps
    assert torch.allclose(capped, plain, rtol=2 * step)
    assert torch.allclose(*gradients, rtol=2 * step, atol=2.0**-24)


def test_a_class_without_a_share_costs_nothing():
    x = torch.tensor([[0.5, -torch.inf, 1.0]], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[0.25, 0.0, 0.75]], dtype=torch.float64)
    y = lab.cross_entropy(x, q)
    close(y, F.cross_entropy(x[:, ::2], q[:, ::2]), 3)
    (g,) = torch.autograd.grad(y, x)
    assert g[0, 1] == 0


# The logits and three numbers a row are saved: any cotangent, any number of times.


def test_one_graph_gives_each_backward_its_own_gradient():
    x, t = drawn(5, 7, "cpu")
    wanted = torch.autograd.grad(F.cross_entropy(x, t), x)[0]
    y = lab.cross_entropy(x, t)
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    copy = first.clone()
    first.mul_(17.0)
    again = torch.autograd.grad(y, x, retain_graph=True)[0]
    tripled = torch.autograd.grad(y, x, torch.tensor(3.0, dtype=torch.float64), retain_graph=True)[0]
    (differentiable,) = torch.autograd.grad(y, x, create_graph=True)
    close(copy, wanted, 7)
    assert torch.equal(again, copy)
    assert torch.equal(differentiable, copy)
    close(tripled, 3 * wanted, 7)
    assert differentiable.requires_grad
    torch.autograd.grad(y, x)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(y, x)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_z_loss_has_a_divisor_of_its_own(scale, inplace):
    """In place the gradient comes with the loss, but in float64; the rows' weights are not the z-loss's."""
    leaf, t = drawn(6, 5, "cpu", torch.float32, ignore=-100)
    weight = torch.tensor([0.1, 3.0, 0.5, 2.0, 7.0])
    y = lab.cross_entropy(leaf * 1, t, weight, z_loss=0.5, inplace=inplace)
    wide = leaf.detach().double().requires_grad_()
    wanted, _ = composed(wide, t, weight.double(), -100, "mean", 0.0, 0.5, None)
    close(y, wanted, 16, 2.0**-24)
    close(torch.autograd.grad(scale * y, leaf)[0], torch.autograd.grad(scale * wanted, wide)[0], 16, 2.0**-24)


def test_float16_does_not_underflow_before_its_scale():
    scale = 2.0**15
    x = torch.zeros(512, 4096, dtype=torch.float16, requires_grad=True)
    t = torch.zeros(512, dtype=torch.long)
    (g,) = torch.autograd.grad(scale * lab.cross_entropy(x, t).float(), x)
    torch.testing.assert_close(
        g[:, 1:].double(), torch.full((512, 4095), scale / 512 / 4096).double(), rtol=2**-10, atol=0
    )


# The logits' memory given away.


@pytest.mark.parametrize("options", [{}, {"reduction": "none"}, {"return_z_loss": True, "z_loss": 0.1}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_place_takes_the_memory_of_the_logits(options, dtype):
    leaf, t = drawn(5, 7, "cpu", dtype)
    x = leaf * 1
    places = []
    x.register_hook(lambda g: places.append(g.data_ptr()))
    found = lab.cross_entropy(x, t, inplace=True, **options)
    y = found[0] if options.get("return_z_loss") else found
    (3 * y.sum()).backward(retain_graph=True)
    assert places == [x.data_ptr()]
    wide = leaf.detach().double().requires_grad_()
    want = lab.cross_entropy(wide, t, **options)
    want = want[0] if options.get("return_z_loss") else want
    (wanted,) = torch.autograd.grad(3 * want.sum(), wide)
    close(leaf.grad, wanted, 16, torch.finfo(dtype).eps)
    with pytest.raises(RuntimeError, match="cross_entropy: a second backward pass came after inplace=True"):
        y.sum().backward()


def test_a_cotangent_of_one_reads_and_writes_nothing_in_place():
    """The gradient is there already: what stands in its memory comes back as it is, unless the cotangent is another."""
    leaf, t = drawn(3, 4, "cpu")
    for scale in (1, 2):
        x = leaf * 1
        y = lab.cross_entropy(x, t, inplace=True)
        close(x, torch.autograd.grad(F.cross_entropy(leaf, t), leaf)[0], 4)
        x.data.fill_(7.0)
        assert torch.equal(torch.autograd.grad(scale * y, leaf)[0], torch.full_like(x, 7.0 * scale))


def test_logits_given_away_are_not_taken_for_logits():
    leaf, t = drawn(3, 4, "cpu")
    x = leaf * 1
    y = lab.cross_entropy(x, t, inplace=True)
    said = (
        "cross_entropy: inplace is True for logits whose memory was given away before, wanted False, or logits computed"
    )
    with pytest.raises(ValueError, match=said):
        lab.cross_entropy(x.view(3, 4), t, inplace=True)
    y.backward()
    with pytest.raises(ValueError, match=said):
        lab.cross_entropy(x, t, inplace=True)
    # A checkpoint that makes the logits itself makes them anew; one that takes them from outside finds their gradient.
    grad = leaf.grad
    leaf.grad = None
    checkpoint(lambda x: lab.cross_entropy(x * 1, t, inplace=True), leaf * 1, use_reentrant=False).backward()
    assert torch.equal(leaf.grad, grad)
    x = leaf * 1
    with pytest.raises(ValueError, match=said):
        checkpoint(lambda _: lab.cross_entropy(x, t, inplace=True), leaf, use_reentrant=False).backward()
    # A buffer that is filled anew holds logits again.
    buffer = torch.empty(3, 4, dtype=torch.float64)
    for _ in range(2):
        x = buffer.detach()
        x.copy_(leaf)
        lab.cross_entropy(x, t, inplace=True)


def test_in_place_is_seen_by_autograd_and_by_nobody_without_a_gradient():
    leaf, t = drawn(3, 4, "cpu")
    saved = torch.exp(leaf)
    y = lab.cross_entropy(saved, t, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    x = leaf.detach().clone()
    lab.cross_entropy(x, t, inplace=True)
    assert torch.equal(x, leaf.detach())
    y = lab.cross_entropy(leaf * 1, t, inplace=True)
    with pytest.raises(NotImplementedError, match="cross_entropy: a second derivative came with inplace=True"):
        torch.autograd.grad(y, leaf, create_graph=True)


@pytest.mark.parametrize(("row", "value"), [(1, 5), (2, -1), (0, 10**9)])
def test_class_out_of_range(device, row, value):
    x, t = drawn(3, 5, device)
    t[row] = value
    if device.type == "cpu":
        with pytest.raises(IndexError, match=rf"cross_entropy: target\[{row}\] is {value}, wanted a class in \[0, 5\)"):
            lab.cross_entropy(x, t)
        return
    y = lab.cross_entropy(x, t, reduction="none")
    assert y.isnan().nonzero().flatten().tolist() == [row]
    assert torch.autograd.grad(y.sum(), x)[0].isnan().any(1).nonzero().flatten().tolist() == [row]


def test_compiled_path_poisons_a_class_out_of_range():
    """What a GPU would compute where nothing may look: the host check is passed by, the kernel answers NaN."""
    x, t = drawn(3, 5, "cpu")
    s = torch.stack([x.detach().max(1).values, torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)])
    t[1] = 7
    dx = kernels.backward(torch.ones(3, dtype=torch.float64), None, x.detach()[..., None], t, None, None, s, PLAIN)
    assert dx.isnan().all(1).flatten().tolist() == [False, True, False]
    assert classes.out_of_range(t, 5, -100).tolist() == [[1, 7]]
    assert classes.out_of_range(torch.tensor([0, 9, 4], dtype=torch.int32), 5, 9).tolist() == [[3, 0]]


class Event:
    """What CUDA says of its work: over or not."""

    def __init__(self, over):
        self.query = lambda: over


def test_a_class_out_of_range_on_a_gpu_is_told_late_and_nothing_waits():
    bad, fine = torch.tensor([[6, 0], [6, 0], [2, 9]]), torch.tensor([[6, 0]])
    try:
        classes.note(classes.Note(Event(True), fine, "cross_entropy", 6, 5, 1))
        classes.note(classes.Note(Event(False), bad, "cross_entropy", 6, 5, 1))
        lab.raise_device_errors()
        assert len(classes._pending) == 1, "what is over is forgotten, what is not yet over is not asked"
        classes._pending[0] = classes._pending[0]._replace(event=Event(True), D=2)
        with pytest.raises(
            IndexError, match=r"cross_entropy: target.flatten\(1\)\[1, 0\] is 9, wanted a class in \[0, 5\); found"
        ):
            lab.raise_device_errors()
        lab.raise_device_errors()
    finally:
        classes._pending.clear()


def test_class_out_of_range_among_pixels():
    t = torch.zeros(2, 3, 2, dtype=torch.long)
    t[1, 2, 1] = 9
    with pytest.raises(
        IndexError, match=r"cross_entropy: target.flatten\(1\)\[1, 5\] is 9, wanted a class in \[0, 4\)"
    ):
        lab.cross_entropy(torch.zeros(2, 4, 3, 2), t)


X, I = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
G = torch.zeros(2, 3, requires_grad=True)
BAD = {
    "scalar": (lambda: lab.cross_entropy(X[0, 0], I[0]), ValueError, r"input of shape \[\] is 0-dimensional, wanted \[V\]"),
    "rows": (lambda: lab.cross_entropy(X, I[:1]), ValueError, r"shape of target is \[1\], wanted \[2\] for input of shape \[2, 3\]"),
    "one row": (lambda: lab.cross_entropy(X[0], I), ValueError, r"shape of target is \[2\], wanted \[\] for input of shape \[3\]"),
    "pixels": (lambda: lab.cross_entropy(X[..., None], I), ValueError, r"shape of target is \[2\], wanted \[2, 1\] for input"),
    "no classes": (lambda: lab.cross_entropy(X[:, :0], I), ValueError, r"input of shape \[2, 0\] is V = 0, wanted at least"),
    "boolean target": (lambda: lab.cross_entropy(X, I.bool()), TypeError, "dtype of target is bool, wanted int64, int32, uint8"),
    "integer logits": (lambda: lab.cross_entropy(X.int(), I), TypeError, "dtype of input is int32, wanted one of float64"),
    "reduction": (lambda: lab.cross_entropy(X, I, reduction="avg"), ValueError, "reduction is 'avg', wanted one of 'none'"),
    "ignore_index": (lambda: lab.cross_entropy(X, I, ignore_index=1.5), TypeError, "ignore_index is 1.5, wanted an int"),
    "device": (lambda: lab.cross_entropy(X, I.to("meta")), ValueError, "device of target is meta, wanted cpu like input"),
    "no tensor": (lambda: lab.cross_entropy(X, [0, 1]), TypeError, "target is a list, wanted a torch.Tensor"),
    "soft shape": (lambda: lab.cross_entropy(X, X[:1]), ValueError, r"shape of soft target is \[1, 3\], wanted \[2, 3\] like input"),
    "soft dtype": (lambda: lab.cross_entropy(X, X.double()), TypeError, "dtype of target is float64, wanted float32 like input"),
    "soft, ignored": (lambda: lab.cross_entropy(X, X, ignore_index=1), ValueError, "ignore_index is 1, wanted none with soft"),
    "weight rank": (lambda: lab.cross_entropy(X, I, X), ValueError, r"weight of shape \[2, 3\] is 2-dimensional, wanted \[V\]"),
    "weight size": (lambda: lab.cross_entropy(X, I, X[0, :2]), ValueError, r"weight of shape \[2\] is V = 2, wanted V = 3 like"),
    "weight dtype": (lambda: lab.cross_entropy(X, I, X[0].double()), TypeError, "dtype of weight is float64, wanted float32"),
    "weight learns": (lambda: lab.cross_entropy(X, I, G[0]), ValueError, "weight is a tensor that requires a gradient"),
    "smoothing": (lambda: lab.cross_entropy(X, I, label_smoothing=1.1), ValueError, "label_smoothing is 1.1, wanted a number from 0"),
    "smoothing nan": (lambda: lab.cross_entropy(X, I, label_smoothing=float("nan")), ValueError, "label_smoothing is nan"),
    "smoothing word": (lambda: lab.cross_entropy(X, I, label_smoothing="a"), TypeError, "label_smoothing is 'a', wanted a number"),
    "z_loss": (lambda: lab.cross_entropy(X, I, z_loss=-1), ValueError, "z_loss is -1, wanted a number from 0"),
    "z_loss tensor": (lambda: lab.cross_entropy(X, I, z_loss=X[0, 0]), TypeError, "z_loss is a Tensor, wanted a number"),
    "return_z_loss": (lambda: lab.cross_entropy(X, I, return_z_loss=1), TypeError, "return_z_loss is 1, wanted True or False"),
    "softcap": (lambda: lab.cross_entropy(X, I, softcap=0), ValueError, "softcap is 0, wanted a number above 0, or None"),
    "inplace": (lambda: lab.cross_entropy(X, I, inplace=1), TypeError, "inplace is 1, wanted True or False"),
    "inplace, leaf": (lambda: lab.cross_entropy(G, I, inplace=True), ValueError, "inplace is True for a leaf that requires a gr"),
    "inplace, soft": (lambda: lab.cross_entropy(G * 1, G, inplace=True), ValueError, "inplace is True with soft targets that req"),
    "inplace, expanded": (lambda: lab.cross_entropy((G * 1)[:1].expand(2, 3), I, inplace=True), ValueError, "inplace is True for ex"),
    "inplace, func": (lambda: torch.func.grad(lambda x: lab.cross_entropy(x * 1, I, inplace=True))(X), ValueError, "inplace is True ins"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match="cross_entropy: " + message) as caught:
        call()
    assert "\n" not in str(caught.value)
