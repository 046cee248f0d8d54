"""`skip_below` of linear_cross_entropy: which tiles of the gradient are 0, and what is not computed."""

import contextlib
import functools

import pytest

torch = pytest.importorskip("torch")

import gradlab
import gradlab.torch as lab
from gradlab.kernels import linear_cross_entropy_triton as kernels
from gradlab.kernels.class_losses import class_range_triton, skipped_triton
from gradlab.kernels.common.tiles_triton import Tile
from gradlab.kernels.runtime.launch_triton import gpu_sizes, interpreting
from gradlab.profiling.emulate.executed import BUDGET, execute_launch
from gradlab.profiling.emulate.launches_torch import emulated
from gradlab.profiling.machine_code.targets import TARGETS

SIDE = 128
BELOW = 4e-3
EVERYTHING = {"ignore_index": 1, "z_loss": 0.3, "softcap": 40.0}


def drawn(M=300, K=9, V=700, dtype=torch.float64, ignored=None):
    """Rows whose tiles like or dislike each tile of classes more or less; h, w, b, classes and weights."""
    r = lambda *s: torch.randn(*s, dtype=torch.float64)
    h, w, b = r(M, K), 0.3 * r(V, K), 0.3 * r(V)
    of_tiles = lambda n, *levels: torch.tensor(levels, dtype=torch.float64)[torch.arange(n) // SIDE]
    h[:, 0], w[:, 0] = of_tiles(M, 5.0, -5.0, 3.0), of_tiles(V, 2.0, -2.0, 1.0, 1.6, -1.0, 0.2)
    t = (torch.randint(0, min(SIDE, V), (M,)) + of_tiles(M, 0, SIDE, 0).long()) % V
    # A class of which a row is sure that it is not its own.
    t[7] = min(2 * SIDE, V) - 1
    if ignored is not None:
        t[::3] = ignored
    h, w, b = (a.to(dtype).requires_grad_() for a in (h, w, b))
    return h, w, b, t, 0.5 + torch.rand(V, dtype=torch.float64)


def expected(h, w, t, b, a, dy, below, *, ignore_index=-100, z_loss=0.0, softcap=None):
    """dh, dw, db of sum_m dy[m] (y[m] + z_loss n[m]) in float64, skipped tiles of dx at 0; |error of dx|; those."""
    h, w, b = (x.detach().double() for x in (h, w, b))
    x = h @ w.T + b
    z = x if softcap is None else softcap * torch.tanh(x / softcap)
    slope = 1 if softcap is None else 1 - torch.tanh(x / softcap) ** 2
    valid, l = t != ignore_index, torch.logsumexp(z, 1)
    p, hit = torch.exp(z - l[:, None]), t[:, None] == torch.arange(w.shape[0])
    R = a[torch.where(valid, t, 0)]
    scale = torch.where(valid, dy * (R + 2 * z_loss * l), 0)
    dx = slope * (scale[:, None] * p - torch.where(valid, dy * R, 0)[:, None] * hit)
    matters = valid[:, None] & ((p >= below) | hit)
    skipped = torch.zeros_like(matters)
    for m in range(0, h.shape[0], SIDE):
        for v in range(0, w.shape[0], SIDE):
            tile = slice(m, m + SIDE), slice(v, v + SIDE)
            skipped[tile] = not matters[tile].any()
    dx = torch.where(skipped, 0, dx)
    return (dx @ w, dx.T @ h, dx.sum(0)), p * scale.abs()[:, None], skipped


def gradients(h, w, t, b, a, dy, below=BELOW, needed=(0, 1, 2), **options):
    y = lab.linear_cross_entropy(h, w, t, b, weight=a, reduction="none", skip_below=below, **options)
    return torch.autograd.grad(y, [(h, w, b)[i] for i in needed], dy.to(y.dtype))


def close(got, wanted, eps=2.0**-53):
    for g, w in zip(got, wanted, strict=True):
        atol = 400 * eps * max(w.abs().max().item(), 1.0)
        torch.testing.assert_close(g.double(), w.double(), rtol=0, atol=atol, equal_nan=True)


@pytest.fixture
def chunks_of_256(monkeypatch):
    monkeypatch.setattr(kernels, "chunk", lambda M, K, V: min(V, 256))


@contextlib.contextmanager
def interpreted():
    with gpu_sizes(), interpreting():
        yield


@pytest.mark.parametrize(
    ("sizes", "options"),
    [(contextlib.nullcontext, {}), (contextlib.nullcontext, EVERYTHING), (gpu_sizes, EVERYTHING), (interpreted, {})],
)
def test_exactly_the_tiles_that_do_not_count_are_0(sizes, options, chunks_of_256):
    h, w, b, t, a = drawn(ignored=options.get("ignore_index"))
    dy = torch.randn(300, dtype=torch.float64)
    want, most, skipped = expected(h, w, t, b, a, dy, BELOW, **options)
    assert 0.3 < skipped.double().mean() < 0.8
    with sizes():
        got = gradients(h, w, t, b, a, dy, **options)
        none = gradients(h, w, t, b, a, dy, 0.0, **options)
    close(got, want)
    # The bound of the documentation, and that it is not met by chance: what is skipped is seen.
    full, _, _ = expected(h, w, t, b, a, dy, 0.0, **options)
    close(none, full)
    most = torch.where(skipped, most, 0)
    for g, f, bound in zip(got, full, (most @ w.abs(), most.T @ h.abs(), most.sum(0)), strict=True):
        assert ((g - f).abs() <= bound + 400 * 2.0**-53 * f.abs().max()).all()
        assert (g - f).abs().max() > 1e-9


@pytest.mark.parametrize(
    ("dtype", "laid"), [(torch.bfloat16, "rows"), (torch.float32, "columns"), (torch.float16, "strided")]
)
def test_dtypes_and_strides(dtype, laid, chunks_of_256):
    """Nothing is so near the threshold that the inputs' dtype matters."""
    h, w, b, t, a = drawn(dtype=dtype)
    if laid == "columns":
        h, w = (x.detach().mT.contiguous().mT.requires_grad_() for x in (h, w))
    if laid == "strided":
        h, w = (x.detach().repeat_interleave(2, 1)[:, ::2].requires_grad_() for x in (h, w))
    dy = torch.ones(300, dtype=torch.float64)
    want, _, skipped = expected(h, w, t, b, a, dy, BELOW)
    assert skipped.any()
    for sizes in (contextlib.nullcontext, gpu_sizes):
        with sizes():
            close(gradients(h, w, t, b, a, dy), want, 2.0**-24 if dtype == torch.float32 else 2.0**-13)


def test_what_is_asked_for_alone_and_with_kept_logits_has_the_same_bits(chunks_of_256):
    h, w, b, t, a = drawn(dtype=torch.float32, ignored=1)
    dy, options = torch.ones(300), {"z_loss": 0.1, "ignore_index": 1}
    every = gradients(h, w, t, b, a, dy, **options)
    for needed in ((0,), (1,), (2,), (0, 1)):
        leaves = [x.detach().requires_grad_(i in needed) for i, x in enumerate((h, w, b))]
        found = gradients(*leaves[:2], t, leaves[2], a, dy, needed=needed, **options)
        assert all(torch.equal(f, every[i]) for f, i in zip(found, needed, strict=True))
    for memory in (300 * 256 * 4, 10**6):
        assert all(map(torch.equal, gradients(h, w, t, b, a, dy, logits_memory=memory, **options), every))


def test_nothing_is_skipped_at_a_threshold_that_nothing_is_below():
    h, w, b, t, a = drawn(64, 5, 300)
    dy = torch.randn(64, dtype=torch.float64)
    close(gradients(h, w, t, b, a, dy, 1e-300), gradients(h, w, t, b, a, dy, 0.0))
    # At 1 what has no row's class is, and ignored rows have none.
    t[:] = 5
    t[::2] = -100
    want, _, skipped = expected(h, w, t, b, a, dy, 1.0)
    assert skipped[:, :SIDE].sum() == 0
    assert skipped[:, SIDE:].all()
    close(gradients(h, w, t, b, a, dy, 1.0), want)
    nothing = gradients(h[:0], w, t[:0], b, a, dy[:0], needed=(1, 2))
    assert not any(g.any() for g in nothing)
    t[:] = -100
    assert not any(g.any() for g in gradients(h, w, t, b, a, dy, 1.0))


def test_mapped_calls_and_batched_cotangents(chunks_of_256):
    h, w, b, t, a = drawn(140, 5, 400)
    hs = torch.stack([h.detach(), -h.detach()])
    layer = functools.partial(lab.linear_cross_entropy, weight=a, skip_below=BELOW)
    of_one = torch.func.grad(lambda h, w: layer(h, w, t, b.detach()), (0, 1))
    got = torch.func.vmap(of_one, (0, None))(hs, w.detach())
    close(got, [torch.stack(g) for g in zip(*(of_one(one, w.detach()) for one in hs), strict=True)])
    assert not torch.equal(got[0][0], torch.func.grad(lambda h: lab.linear_cross_entropy(h, w, t, b, weight=a))(h))
    y, rows = layer(h, w, t, b, reduction="none"), torch.eye(140, dtype=torch.float64)[:2]
    every = torch.autograd.grad(y, (h, w), rows, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, (h, w), row, retain_graph=True) for row in rows]
    close(every, [torch.stack(g) for g in zip(*each, strict=True)])


def test_a_second_derivative_is_that_of_the_loss(chunks_of_256):
    h, w, b, t, a = drawn(140, 5, 400)
    found = []
    for below in (0.0, BELOW):
        y = lab.linear_cross_entropy(h, w, t, b, weight=a, skip_below=below)
        first = torch.autograd.grad(y, (h, w, b), create_graph=True)
        random = [torch.randn(g.shape, dtype=g.dtype, generator=torch.Generator().manual_seed(3)) for g in first]
        found.append((first, torch.autograd.grad(first, (h, w, b), random)))
    assert not torch.equal(found[0][0][0], found[1][0][0])
    assert all(map(torch.equal, found[0][1], found[1][1]))


def test_one_graph_and_a_checkpoint():
    torch.compiler.reset()
    h, w, b, t, a = drawn(140, 5, 400)
    layer = functools.partial(lab.linear_cross_entropy, weight=a, skip_below=BELOW)
    plain = torch.autograd.grad(layer(h, w, t, b), (h, w, b))
    graph = torch.compile(lambda h, w, b: layer(h, w, t, b), fullgraph=True, backend="aot_eager", dynamic=True)
    assert all(map(torch.equal, torch.autograd.grad(graph(h, w, b), (h, w, b)), plain))
    again = torch.utils.checkpoint.checkpoint(layer, h, w, t, b, use_reentrant=False)
    assert all(map(torch.equal, torch.autograd.grad(again, (h, w, b)), plain))


def test_a_row_whose_class_nobody_looked_at_is_nan(monkeypatch):
    monkeypatch.setattr(kernels, "refuse_out_of_range", lambda *args: None)
    assert class_range_triton.refuse_out_of_range is not kernels.refuse_out_of_range
    h, w, b, t, _ = drawn(140, 5, 400)
    t[130] = 400
    dh, dw, _ = gradients(h, w, t, b, None, torch.ones(140, dtype=torch.float64))
    assert dh.isnan().all(1).nonzero().flatten().tolist() == [130]
    assert dw.isnan().all()


def test_no_memory_is_read_that_was_not_written(chunks_of_256):
    """Sanitized: of what a skipped tile leaves as it was nothing is read."""
    h, w, b, t, a = drawn(200, 5, 400, torch.float32)
    for sizes in (contextlib.nullcontext, gpu_sizes):
        with sizes(), gradlab.sanitize():
            gradients(h, w, t, b, a, torch.ones(200))
            gradients(h, w, t, b, a, torch.ones(200), needed=(0, 1))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_operations_that_tensor_cores_do_not_execute(arch, monkeypatch):
    """Of products in PTX: 1 of 4 tiles counts, so a quarter of the operations is left of each product of backward."""
    for module in (kernels, skipped_triton):
        monkeypatch.setattr(module, "tile", lambda *args: Tile(128, 64, 128, 8))
    M, K, V, done = 256, 128, 256, []

    def run(launch):
        found = execute_launch(launch, TARGETS[arch], "torch", "backward", BUDGET, dict(_EXACT)).executed
        assert not found.faults
        done.append((launch.kernel, int(found.counts.operations.sum())))

    h, w, _, _, _ = drawn(M, K, V, torch.bfloat16)
    # All rows want the first tile of classes, and those of the second tile of rows are ignored.
    h, w = h.detach().abs().requires_grad_(), (w.detach() * 0.1).requires_grad_()
    with torch.no_grad():
        w[:SIDE, 0] = 4.0
    t = torch.arange(M) % SIDE
    t[SIDE:] = -100
    with emulated(TARGETS[arch], run):
        y = lab.linear_cross_entropy(h, w, t, skip_below=1e-3)
        forward = dict(done)
        done.clear()
        found = torch.autograd.grad(y, (h, w))
    product = 2 * M * K * V
    assert forward["statistics"] == product
    assert [n for name, n in done if name == "backward"] == [product // 4]
    assert [n for name, n in done if name == "listed_product"] == [product // 4] * 2
    ones = torch.ones(V, dtype=torch.float64)
    want, _, skipped = expected(h, w, t, 0 * ones, ones, torch.ones(M).double() / SIDE, 1e-3)
    assert skipped.double().mean() == 0.75
    close(found, want[:2], 2.0**-13)


_EXACT = {"order": "together", "exact": True, "check": True, "late": True}


H, W, T = torch.zeros(2, 3), torch.zeros(5, 3), torch.zeros(2, dtype=torch.long)
BAD = {
    "below 0": ({"skip_below": -0.1}, ValueError, "skip_below is -0.1, wanted a number from 0 to 1"),
    "NaN": ({"skip_below": float("nan")}, ValueError, "skip_below is nan, wanted a number from 0 to 1"),
    "no number": ({"skip_below": "1"}, TypeError, "skip_below is '1', wanted a number"),
    "smoothing": (
        {"skip_below": 0.1, "label_smoothing": 0.1},
        ValueError,
        "skip_below is 0.1 beside label_smoothing, wanted 0 there: every class has a target probability",
    ),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(options, error, message):
    with pytest.raises(error, match="linear_cross_entropy: " + message) as caught:
        lab.linear_cross_entropy(H, W, T, **options)
    assert "\n" not in str(caught.value)
