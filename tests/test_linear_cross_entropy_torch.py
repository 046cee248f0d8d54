"""linear_cross_entropy on torch: every option against torch's two layers, chunks, memory, strides, bad input."""

import contextlib
import functools

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import gradlab.torch as lab
from gradlab.autodiff.frameworks.side import side
from gradlab.kernels import linear_cross_entropy_triton as kernels
from gradlab.kernels.class_losses import chunks, class_range_triton, linear_second_triton
from gradlab.kernels.class_losses.chunks import chunk, kept
from gradlab.kernels.common import column_sum_triton, matmul_triton
from gradlab.kernels.common.tiles_triton import Tile, fill
from gradlab.kernels.runtime.launch_triton import gpu_sizes
from gradlab.profiling.bench.peak import peak_bytes
from tests.test_product_torch import emulated_on_sm_90

EVERYTHING = {"ignore_index": 1, "label_smoothing": 0.2, "z_loss": 0.3, "softcap": 2.0}


def native(h, w, t, b=None, *, softcap=None, z_loss=0.0, return_z_loss=False, **options):
    """The logits written out: torch's two layers, with the two terms that torch has not."""
    x = F.linear(h, w, b)
    x = x if softcap is None else softcap * torch.tanh(x / softcap)
    y = F.cross_entropy(x.reshape(-1, x.shape[-1]), t.reshape(-1), **options)
    valid, reduction = t != options.get("ignore_index", -100), options.get("reduction", "mean")
    z = torch.where(valid, z_loss * torch.logsumexp(x, -1).square(), 0)
    z = {"none": lambda: z, "sum": z.sum, "mean": lambda: z.sum() / valid.sum()}[reduction]()
    y = y.reshape(z.shape) + z
    return (y, z) if return_z_loss else y


def drawn(device, M=5, K=3, V=7, dtype=torch.float64, ignored=None):
    """h, w, b that require a gradient, classes, and the weights of classes."""
    r = lambda *s: torch.randn(*s, dtype=torch.float64, device=device).to(dtype).requires_grad_()
    t = torch.randint(0, V, (M,), device=device)
    if ignored is not None:
        t[::3] = ignored
    return r(M, K), r(V, K), r(V), t, 0.5 + torch.rand(V, dtype=torch.float64, device=device)


def results(layer, h, w, t, b, *, second=False, **options):
    """Both values, the gradients for cotangents that are not ones, and what goes back through those."""
    y = layer(h, w, t, b, return_z_loss=True, **options)
    leaves = [a for a in (h, w, b) if a is not None]
    generator = torch.Generator().manual_seed(1)
    random = lambda a: torch.randn(a.shape, dtype=torch.float64, generator=generator).to(a.device, a.dtype)
    first = torch.autograd.grad(y, leaves, [random(a) for a in y], create_graph=second)
    if not second:
        return (*y, *first)
    return (*y, *first, *torch.autograd.grad(first, leaves, [random(a) for a in first]))


def close(got, wanted, terms=40, eps=2.0**-53):
    for g, w in zip(got, wanted, strict=True):
        scale = max(w.abs().nan_to_num().max().item() if w.numel() else 0.0, 0.1)
        torch.testing.assert_close(g.double(), w.double(), rtol=0, atol=2 * terms * eps * scale, equal_nan=True)


def compare(h, w, t, b, **options):
    close(results(lab.linear_cross_entropy, h, w, t, b, **options), results(native, h, w, t, b, **options))


@pytest.fixture
def small_chunks(monkeypatch):
    for module in (chunks, kernels, linear_second_triton):
        monkeypatch.setattr(module, "chunk", lambda M, K, V: min(V, 3))


@settings(max_examples=12)
@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 9)),
    reduction=st.sampled_from(["none", "mean", "sum"]),
    ignored=st.sampled_from([None, 0, -100]),
    smoothing=st.sampled_from([0.0, 0.3, 1.0]),
    z_loss=st.sampled_from([0.0, 0.2]),
    softcap=st.sampled_from([None, 1.5]),
    bias=st.booleans(),
    weighed=st.booleans(),
)
def test_every_option_with_every_other(sizes, reduction, ignored, smoothing, z_loss, softcap, bias, weighed):
    h, w, b, t, c = drawn("cpu", *sizes, ignored=ignored)
    options = {"reduction": reduction, "label_smoothing": smoothing, "z_loss": z_loss, "softcap": softcap}
    options |= {"weight": c} if weighed else {}
    options |= {} if ignored is None else {"ignore_index": ignored}
    compare(h, w, t, b if bias else None, **options)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_both_derivatives_over_chunks_of_classes(device, reduction, small_chunks):
    h, w, b, t, c = drawn(device, ignored=1)
    compare(h, w, t, b, weight=c, reduction=reduction, second=True, **EVERYTHING)


@pytest.mark.parametrize("sizes", [contextlib.nullcontext, gpu_sizes])
def test_a_kernel_of_many_programs_and_splits(device, sizes, monkeypatch):
    """Several blocks of rows, partial ones, and splits of the classes that are merged."""
    merged = []
    launch = kernels.launch
    monkeypatch.setattr(kernels, "launch", lambda jit, grid, *a, **k: (merged.append(grid), launch(jit, grid, *a, **k)))
    h, w, b, t, c = drawn(device, 65, 17, 130, ignored=1)
    # Far logits in one split alone: each split has a maximum of its own.
    with torch.no_grad():
        b[70:] -= 300.0
    with sizes():
        compare(h, w, t, b, weight=c, reduction="none", second=True, **{**EVERYTHING, "softcap": 50.0})
        close(results(lab.linear_cross_entropy, h, w, t, None), results(native, h, w, t, None))
    assert merged[0][0] > 1, "several blocks of rows"
    assert merged[0][1] > 1, "several splits of the classes"


@pytest.mark.parametrize("slope", [5.0, -5.0])
def test_several_tiles_of_classes_in_one_program(device, slope, monkeypatch):
    """The maximum moves at each tile, or never again: what was summed before is moved with it."""
    monkeypatch.setattr(kernels, "tile", lambda *args: Tile(16, 16, 16))
    monkeypatch.setattr(kernels, "fill", lambda device: 1)
    h, w, b, t, c = drawn(device, 5, 3, 70)
    b = (b.detach() + slope * torch.arange(70, device=device)).requires_grad_()
    options = {"weight": c, "label_smoothing": 0.3, "z_loss": 0.1, "reduction": "none"}
    got, want = (results(f, h, w, t, b, **options) for f in (lab.linear_cross_entropy, native))
    # A logit of 350 is off by as many roundings as one of 1.
    close(got, want, 40 + 350)


def broken(monkeypatch, name, change):
    real = getattr(kernels, name)
    monkeypatch.setattr(kernels, name, lambda *args: change(real(*args)))


BREAKS = {
    "forward that does nothing": ("loss", lambda r: (torch.zeros_like(r[0]), *r[1:])),
    "forward's sign": ("loss", lambda r: (-r[0], *r[1:])),
    "z-loss left out": ("loss", lambda r: (r[0], torch.zeros_like(r[1]), *r[2:])),
    "backward that does nothing": ("backward", lambda r: tuple(map(torch.zeros_like, r))),
    "backward's sign": ("backward", lambda r: tuple(-g for g in r)),
    "a class of dw": ("backward", lambda r: (r[0], r[1] * (torch.arange(7) != 3), r[2])),
    "a row of dh": ("backward", lambda r: (r[0] * (torch.arange(5) != 2).unsqueeze(-1), *r[1:])),
    "db": ("backward", lambda r: (*r[:2], 1.001 * r[2])),
}


@pytest.mark.parametrize("break_", BREAKS)
def test_a_broken_kernel_is_caught(monkeypatch, break_):
    h, w, b, t, c = drawn("cpu")
    options = {"weight": c, "label_smoothing": 0.2, "z_loss": 0.3}
    compare(h, w, t, b, **options)
    broken(monkeypatch, *BREAKS[break_])
    with pytest.raises(AssertionError, match="not close"):
        compare(h, w, t, b, **options)


@pytest.mark.parametrize("shift", [1e4, -1e4, 200.0])
def test_far_logits(device, shift):
    h, w, b, t, c = drawn(device)
    b = (b.detach() + shift).requires_grad_()
    for options in ({}, {"weight": c, "label_smoothing": 0.2}):
        # Native logits have lost the digits that theirs are shifted by; so has b itself, and the sum of h w and b.
        got, want = (results(f, h, w, t, b, **options) for f in (lab.linear_cross_entropy, native))
        close(got, want, 40 + abs(shift))


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_any_leading_axes(device, leading, reduction):
    h, w, b, _, _ = drawn(device)
    h = torch.randn(*leading, 3, dtype=torch.float64, device=device, requires_grad=True)
    t = torch.randint(0, 7, leading, device=device)
    compare(h, w, t, b, reduction=reduction, z_loss=0.1)


def test_every_row_ignored(device):
    h, w, b, t, _ = drawn(device)
    t = torch.full_like(t, -100)
    for reduction, value in (("mean", torch.nan), ("sum", 0.0)):
        y = lab.linear_cross_entropy(h, w, t, b, reduction=reduction, z_loss=0.1)
        assert y.isnan() if reduction == "mean" else y == value
        grads = torch.autograd.grad(lab.linear_cross_entropy(h, w, t, b, reduction="sum", z_loss=0.1), (h, w, b))
        assert not any(g.any() for g in grads)


def test_any_strides(device):
    base, r = torch.randn(6, 12, dtype=torch.float64, device=device), lambda *s: torch.randn(*s, dtype=torch.float64)
    h = base.t()[::2].detach().requires_grad_()
    for w in (r(14, 12)[::2, ::2], r(6, 7).t(), r(1, 6).expand(7, 6), r(7, 1).expand(7, 6)):
        w = w.to(device).detach().requires_grad_()
        b = r(1).to(device).expand(7).detach().requires_grad_()
        t = torch.arange(12, device=device)[::2] % 7
        options = {"reduction": "none", "weight": r(14).to(device).abs()[::2]}
        dy = torch.ones((), dtype=torch.float64, device=device).expand(6)
        got, want = (
            torch.autograd.grad(f(h, w, t, b, **options), (h, w, b), dy) for f in (lab.linear_cross_entropy, native)
        )
        close(got, want)


def test_same_bits_and_nothing_changed(device, small_chunks):
    h, w, b, t, c = drawn(device, dtype=torch.float32)
    before = [a.detach().clone() for a in (h, w, b, t, c)]
    y = lab.linear_cross_entropy(h, w, t, b, weight=c)
    grads = [
        torch.autograd.grad(z, (h, w, b), retain_graph=True)
        for z in (y, y, lab.linear_cross_entropy(h, w, t, b, weight=c))
    ]
    assert all(torch.equal(a, b) for other in grads[1:] for a, b in zip(grads[0], other, strict=True))
    assert all(torch.equal(a.detach(), was) for a, was in zip((h, w, b, t, c), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_at_most_twice_as_native(device, dtype, monkeypatch):
    for module in (kernels, linear_second_triton):
        monkeypatch.setattr(module, "chunk", lambda M, K, V: 32)
    h, w, b, t, _ = drawn(device, 48, 24, 80, dtype=dtype)
    truth = results(
        native, *(a.detach().double().requires_grad_() for a in (h, w)), t, b.detach().double().requires_grad_()
    )
    ours, theirs = (results(f, h, w, t, b) for f in (lab.linear_cross_entropy, native))
    for true, a, n in zip(truth, ours, theirs, strict=True):
        assert a.dtype == dtype
        rounding = (true - true.to(dtype).double()).square().mean().sqrt()
        error, allowed = ((true - x.double()).square().mean().sqrt() for x in (a, n))
        assert error <= 2 * torch.maximum(allowed, rounding)


def test_a_scaled_loss_does_not_underflow(device):
    """The cotangent is in dx before that is rounded to float16: what a loss is scaled for."""
    h, w, b, t, _ = drawn(device, 4, 3, 500, dtype=torch.float16)
    for scale, all_there in ((2.0**-12, False), (2.0**12, True)):
        (g,) = torch.autograd.grad(lab.linear_cross_entropy(h, w, t, b) * scale, b)
        assert bool((g != 0).all()) == all_there


@pytest.mark.parametrize("sizes", [contextlib.nullcontext, gpu_sizes])
@pytest.mark.parametrize(
    ("dtype", "options"), [(torch.float32, EVERYTHING), (torch.bfloat16, {}), (torch.float64, {"reduction": "none"})]
)
def test_kept_logits_are_those_that_backward_would_make(device, dtype, options, sizes, monkeypatch):
    """The same bits with no logits kept, those of one chunk of three, of two, and all; and fewer products."""
    monkeypatch.setattr(kernels, "chunk", lambda M, K, V: 128)
    monkeypatch.setattr(chunks, "chunk", lambda M, K, V: 128)
    M, K, V = 70 + len(options), 40, 300
    h, w, b, t, c = drawn(device, M, K, V, dtype, ignored=1)
    column = M * (8 if dtype == torch.float64 else 4)
    found, flops = [], []
    with sizes():
        for memory in (0, column * 128, column * 299, column * 300):
            y = lab.linear_cross_entropy(h, w, t, b, weight=c, logits_memory=memory, **options)
            with FlopCounterMode(display=False) as counter:
                found.append((y, *torch.autograd.grad(y, (h, w, b), torch.full_like(y, 1.3))))
            flops.append(counter.get_total_flops())
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))
    assert flops == [2 * M * K * (3 * V - classes) for classes in (0, 128, 256, 300)]


def test_kept_logits_of_long_rows_keep_their_bits(device, monkeypatch):
    """Rows of a length that cross_entropy has other kernels for, with another order of sums."""
    monkeypatch.setattr(kernels, "chunk", lambda M, K, V: 1024)
    monkeypatch.setattr(chunks, "chunk", lambda M, K, V: 1024)
    h, w, b, t, _ = drawn(device, 24, 16, 2500, torch.float32, ignored=1)
    found = []
    for memory in (0, 24 * 4 * 1024, 24 * 4 * 2500):
        y = lab.linear_cross_entropy(h, w, t, b, logits_memory=memory, softcap=2.0)
        found.append((y, *torch.autograd.grad(y, (h, w, b))))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


def test_both_derivatives_of_kept_logits(device, small_chunks):
    h, w, b, t, c = drawn(device, M=6, ignored=1)
    options = {"weight": c, **EVERYTHING, "second": True}
    want = results(native, h, w, t, b, **options)
    for memory in (6 * 8 * 5, 10**6):
        layer = functools.partial(lab.linear_cross_entropy, logits_memory=memory)
        close(results(layer, h, w, t, b, **options), want)


def test_kept_logits_of_mapped_and_repeated_calls(device, small_chunks):
    """Their rows share the memory; a backward for many cotangents, and the same gradients twice."""
    h, w, b, t, _ = drawn(device, M=4)
    hs = torch.stack([h.detach(), h.detach() + 1, h.detach() - 2])
    for memory in (0, 3 * 4 * 8 * 3, 10**6):
        layer = functools.partial(lab.linear_cross_entropy, logits_memory=memory, reduction="none")
        of_one = torch.func.grad(lambda h, w, layer=layer: layer(h, w, t, b.detach()).sum(), (0, 1))
        got = torch.func.vmap(of_one, (0, None))(hs, w.detach())
        close(got, [torch.stack(g) for g in zip(*(of_one(one, w.detach()) for one in hs), strict=True)])
        y = layer(h, w, t, b)
        rows = torch.eye(4, dtype=torch.float64, device=device)
        every = torch.autograd.grad(y, (h, w), rows, is_grads_batched=True, retain_graph=True)
        each = [torch.autograd.grad(y, (h, w), row, retain_graph=True) for row in rows]
        close(every, [torch.stack(g) for g in zip(*each, strict=True)])


def test_kept_logits_in_a_graph_and_under_checkpoint(device):
    torch.compiler.reset()
    h, w, b, t, _ = drawn(device, M=7)
    plain = torch.autograd.grad(lab.linear_cross_entropy(h, w, t, b), (h, w, b))
    kept = functools.partial(lab.linear_cross_entropy, logits_memory=7 * 7 * 8)
    for dynamic in (False, True):
        graph = torch.compile(lambda h, w, b: kept(h, w, t, b), fullgraph=True, backend="aot_eager", dynamic=dynamic)
        assert all(map(torch.equal, torch.autograd.grad(graph(h, w, b), (h, w, b)), plain))
    again = torch.utils.checkpoint.checkpoint(kept, h, w, t, b, use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(again, (h, w, b)), plain))


def test_what_is_kept_goes_through_saved_tensors_and_stays_in_its_memory(device):
    M, K, V = 8, 3, 2000
    h, w, b, t, _ = drawn(device, M, K, V)

    def largest(memory, *leaves):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda a: (saved.append(a), a)[1], lambda a: a):
            lab.linear_cross_entropy(*leaves[:2], t, leaves[2], logits_memory=memory)
        return [tuple(a.shape) for a in saved if a.ndim == 3 and a.shape[:2] == (1, M) and a.shape[2] not in (K, M)]

    assert kept(M, K, V, 8, M * V * 8 - 1) == 0, "a chunk is all"
    for memory, wanted in ((0, []), (M * V * 8 - 1, []), (M * V * 8, [(1, M, V)])):
        assert largest(memory, h, w, b) == wanted
        assert largest(memory, *(a.detach() for a in (h, w, b))) == []
    for M, K, V, memory in ((8192, 4096, 128256, 2**31), (8192, 4096, 128256, 2**32), (512, 256, 32768, 2**20 + 7)):
        assert M * kept(M, K, V, 4, memory) * 4 <= memory
    assert kept(8192, 4096, 128256, 4, 2**31) == 65536
    assert kept(8192, 4096, 128256, 4, 2**32) == 128256


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_what_needs_no_gradient_costs_nothing(device, needed, monkeypatch, small_chunks):
    h, w, b, t, _ = drawn(device)
    full = torch.autograd.grad(lab.linear_cross_entropy(h, w, t, b), (h, w, b))
    calls = []
    for module, name in ((matmul_triton, "matmul_into"), (column_sum_triton, "column_sum")):
        real = getattr(module, name)
        monkeypatch.setattr(kernels, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
    leaves = [a.detach().requires_grad_(i in needed) for i, a in enumerate((h, w, b))]
    found = torch.autograd.grad(lab.linear_cross_entropy(*leaves[:2], t, leaves[2]), [leaves[i] for i in needed])
    assert all(torch.equal(g, full[i]) for g, i in zip(found, needed, strict=True))
    # Three chunks, a product for h and one for w in each.
    assert calls.count("matmul_into") == 3 * sum(i < 2 for i in needed)
    assert calls.count("column_sum") == 3 * (2 in needed)


def test_memory_stays_below_its_formula(monkeypatch):
    """And that of linear and cross_entropy does not, which keep the logits."""
    M, K, V, e = 64, 8, 4096, 4
    for module in (kernels, linear_second_triton):
        monkeypatch.setattr(module, "chunk", lambda M, K, V: 256)
    h, w, _, t, _ = drawn("cpu", M, K, V, dtype=torch.float32)

    def back(layer):
        return lambda: torch.autograd.grad(layer(), (h, w))

    def twice():
        first = torch.autograd.grad(lab.linear_cross_entropy(h, w, t), (h, w), create_graph=True)
        return torch.autograd.grad(first, (h, w), first)

    # A few numbers a row beside, four of them for each split of the classes, and one matrix of the gradients more where
    # they are differentiated.
    rows, asked, dx = (4 * fill(h.device) + 16) * M * e, e * (M * K + K * V), M * 256 * e
    peak = peak_bytes(side("torch"), back(lambda: lab.linear_cross_entropy(h, w, t)))
    assert asked + dx < peak < asked + dx + 4 * M * K + rows
    assert peak_bytes(side("torch"), lambda: lab.linear_cross_entropy(h, w, t)) < rows
    assert peak_bytes(side("torch"), twice) < 3 * asked + 4 * dx + rows < M * V * e
    assert peak_bytes(side("torch"), back(lambda: lab.cross_entropy(lab.linear(h, w), t))) > 2 * M * V * e


def test_a_chunk_is_about_as_large_as_h():
    for M, K, V in ((8192, 4096, 128256), (512, 256, 32768), (1, 1, 10**6), (10**6, 64, 50257), (64, 5000, 10**6)):
        Vc = chunk(M, K, V)
        assert Vc == V or Vc & (Vc - 1) == 0
        assert M * Vc <= max(M * K, 2**21, 1024 * M)
        assert Vc >= min(V, 1024)
    assert chunk(8192, 4096, 128256) == 4096
    assert chunk(0, 0, 5) == 5


def test_third_derivative_is_refused_not_lost(device):
    h, w, b, t, _ = drawn(device)
    first = torch.autograd.grad(lab.linear_cross_entropy(h, w, t, b), (h, w), create_graph=True)
    (second,) = torch.autograd.grad(sum(g.square().sum() for g in first), h, create_graph=True)
    with pytest.raises(NotImplementedError, match="linear_cross_entropy: its third derivative is not implemented"):
        second.sum().backward()


def test_one_graph_and_its_gradients(device):
    torch.compiler.reset()
    h, w, b, t, c = drawn(device, ignored=1)

    def loss(h, w, b):
        y, z = lab.linear_cross_entropy(h, w, t, b, weight=c, return_z_loss=True, **EVERYTHING)
        return y.sin() + z

    got, want = torch.compile(loss, fullgraph=True, backend="aot_eager")(h, w, b), loss(h, w, b)
    assert torch.equal(got, want)
    for one, other in zip(*(torch.autograd.grad(y, (h, w, b)) for y in (got, want)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("row", "value"), [(1, 5), (2, -1), (0, 10**9)])
def test_class_out_of_range(device, row, value):
    h, w, b, t, _ = drawn(device, V=5)
    t[row] = value
    if device.type == "cpu":
        with pytest.raises(
            IndexError, match=rf"linear_cross_entropy: target\[{row}\] is {value}, wanted a class in \[0, 5\)"
        ):
            lab.linear_cross_entropy(h, w, t, b)
        return
    lab.linear_cross_entropy(h, w, t, b)
    torch.cuda.synchronize()
    with pytest.raises(IndexError, match=rf"target\[{row}\] is {value}"):
        lab.raise_device_errors()


def test_a_class_that_nobody_looked_at_is_nan(device, monkeypatch):
    monkeypatch.setattr(kernels, "refuse_out_of_range", lambda *args: None)
    assert class_range_triton.refuse_out_of_range is not kernels.refuse_out_of_range
    h, w, b, t, _ = drawn(device)
    t[1] = 7
    y, z = lab.linear_cross_entropy(h, w, t, b, reduction="none", z_loss=0.1, return_z_loss=True)
    assert y.isnan().nonzero().flatten().tolist() == z.isnan().nonzero().flatten().tolist() == [1]
    (g,) = torch.autograd.grad(y.sum(), h, create_graph=True)
    assert g.isnan().all(1).nonzero().flatten().tolist() == [1]
    assert torch.autograd.grad(g.sum(), h)[0].isnan().all(1).nonzero().flatten().tolist() == [1]


H, W, T = torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, dtype=torch.long)
BAD = {
    "no tensor": (lambda: lab.linear_cross_entropy(H, W, [0, 1]), TypeError, "target is a list, wanted a torch.Tensor"),
    "scalar": (lambda: lab.linear_cross_entropy(H[0, 0], W, T), ValueError, r"input of shape \[\] is 0-dimensional, wanted \[... K\]"),
    "rank of weight": (lambda: lab.linear_cross_entropy(H, W[None], T), ValueError, r"linear_weight of shape \[1, 5, 3\] is 3-dimensional, wanted \[V K\]"),
    "K": (lambda: lab.linear_cross_entropy(H[:, :2], W, T), ValueError, r"linear_weight of shape \[5, 3\] is K = 3, wanted K = 2 like input's"),
    "no classes": (lambda: lab.linear_cross_entropy(H, W[:0], T), ValueError, r"linear_weight of shape \[0, 3\] is V = 0, wanted at least"),
    "rows": (lambda: lab.linear_cross_entropy(H, W, T[:1]), ValueError, r"shape of target is \[1\], wanted \[2\] like input's"),
    "two": (lambda: lab.linear_cross_entropy(H, W, T, W[:, 0], bias=W[:, 0]), ValueError, "bias is there beside linear_bias, wanted one of"),
    "bias": (lambda: lab.linear_cross_entropy(H, W, T, W[0]), ValueError, r"linear_bias of shape \[3\] is V = 3, wanted V = 5"),
    "weight": (lambda: lab.linear_cross_entropy(H, W, T, weight=W), ValueError, r"weight of shape \[5, 3\] is 2-dimensional, wanted \[V\]"),
    "moving weight": (lambda: lab.linear_cross_entropy(H, W, T, weight=torch.ones(5, requires_grad=True)), ValueError, "weight is a tensor that requires a gradient"),
    "soft target": (lambda: lab.linear_cross_entropy(H, W, torch.zeros(2, 5)), TypeError, "dtype of target is float32, wanted classes: probabilities are as large as the logits"),
    "boolean target": (lambda: lab.linear_cross_entropy(H, W, T.bool()), TypeError, "dtype of target is bool, wanted int64, int32 or uint8"),
    "mixed": (lambda: lab.linear_cross_entropy(H, W.double(), T), TypeError, "dtype of linear_weight is float64, wanted float32 like input"),
    "integer weight": (lambda: lab.linear_cross_entropy(H, W, T, weight=T.new_ones(5)), TypeError, "dtype of weight is int64, wanted one of float64"),
    "device": (lambda: lab.linear_cross_entropy(H, W, T.to("meta")), ValueError, "device of target is meta, wanted cpu like input"),
    "reduction": (lambda: lab.linear_cross_entropy(H, W, T, reduction="avg"), ValueError, "reduction is 'avg', wanted one of 'none'"),
    "ignore_index": (lambda: lab.linear_cross_entropy(H, W, T, ignore_index=1.5), TypeError, "ignore_index is 1.5, wanted an int"),
    "smoothing": (lambda: lab.linear_cross_entropy(H, W, T, label_smoothing=1.5), ValueError, "label_smoothing is 1.5, wanted a number from 0 to 1"),
    "z_loss": (lambda: lab.linear_cross_entropy(H, W, T, z_loss=-1.0), ValueError, "z_loss is -1.0, wanted a number from 0"),
    "softcap": (lambda: lab.linear_cross_entropy(H, W, T, softcap=0), ValueError, "softcap is 0, wanted a number above 0, or None"),
    "return_z_loss": (lambda: lab.linear_cross_entropy(H, W, T, return_z_loss=1), TypeError, "return_z_loss is 1, wanted True or False"),
    "logits_memory": (lambda: lab.linear_cross_entropy(H, W, T, logits_memory=-1), ValueError, "logits_memory is -1, wanted a number of bytes from 0"),
    "half a byte": (lambda: lab.linear_cross_entropy(H, W, T, logits_memory=0.5), TypeError, "logits_memory is 0.5, wanted an int"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match="linear_cross_entropy: " + message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_torchs_names_and_its_default(device):
    h, w, b, t, c = drawn(device)
    t[0] = -100
    for options in (
        {},
        {"linear_bias": b, "weight": c, "label_smoothing": 0.1, "reduction": "sum", "ignore_index": None},
    ):
        got = lab.linear_cross_entropy(h, w, t, **options)
        if hasattr(F, "linear_cross_entropy"):
            close([got], [F.linear_cross_entropy(h, w, t, **options)])
        options.pop("ignore_index", None)
        close([got], [native(h, w, t, options.pop("linear_bias", None), **options)])


def test_tiles_of_tensor_cores_executed_as_ptx(monkeypatch):
    """Large tiles, whose operands come by sm_90's TMA: as on a CPU, and kept logits are those made again."""
    M, K, V, tiles = 136, 72, 264, []
    monkeypatch.setattr(kernels, "tile", lambda *args, real=kernels.tile: (tiles.append(real(*args)), tiles[-1])[1])
    h, w, _, t, _ = drawn("cpu", M, K, V, torch.bfloat16)

    def pulled(memory):
        y = lab.linear_cross_entropy(h, w, t, logits_memory=memory)
        return (y, *torch.autograd.grad(y, (h, w)))

    with gpu_sizes("sm_90"):
        cpu = pulled(0)
        with emulated_on_sm_90():
            made, kept = pulled(0), pulled(4 * M * V)
    assert all(map(torch.equal, made, kept))
    assert {(tile.M, tile.N) for tile in tiles} == {(128, 256)}
    close(made, cpu, eps=2.0**-9)
