"""Products of matrices by descriptors of a GPU's TMA, by pointers where a matrix does not lie so, and in parts."""

import contextlib

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F

import gradlab.torch as lab
from gradlab.kernels.common import matmul_triton
from gradlab.kernels.common.matmul_triton import matmul_into
from gradlab.kernels.common.product_triton import ways
from gradlab.kernels.common.tiles_triton import Tile, product_parts
from gradlab.kernels.runtime.launch_triton import gpu_sizes, interpreting, noting, recording
from gradlab.profiling.emulate.executed import BUDGET, execute_launch
from gradlab.profiling.emulate.launches_torch import emulated
from gradlab.profiling.machine_code.targets import TARGETS


def half(*shape):
    return torch.randn(shape).bfloat16()


LAID = {
    "rows": (lambda: half(24, 40), "rows"),
    "columns": (lambda: half(40, 24).mT, "columns"),
    "every other row": (lambda: half(48, 40)[::2], "rows"),
    "a slice of rows": (lambda: half(24, 80)[:, 8:48], "rows"),
    "a batch": (lambda: half(3, 24, 40), "rows"),
    "one batch for all": (lambda: half(24, 40).expand(3, 24, 40), "rows"),
    "an odd address": (lambda: half(24, 80)[:, 1:41], "pointers"),
    "odd rows": (lambda: half(24, 41)[:, :40], "pointers"),
    "odd batches": (lambda: half(3, 961)[:, :960].view(3, 24, 40), "pointers"),
    "every other element": (lambda: half(24, 80)[:, ::2], "pointers"),
    "one row for all": (lambda: half(1, 40).expand(24, 40), "pointers"),
    "one column for all": (lambda: half(24, 1).expand(24, 40), "pointers"),
    "backwards of nothing": (lambda: half(24, 0), "pointers"),
    "float32": (lambda: torch.randn(24, 40), "wide rows"),
    "float32 of odd rows": (lambda: torch.randn(24, 42)[:, :40], "pointers"),
    "rows whose last load is not full": (lambda: torch.randn(24, 44)[:, :42], "pointers"),
}


@pytest.mark.parametrize(("make", "wanted"), LAID.values(), ids=LAID)
def test_what_a_descriptor_can_name(make, wanted):
    t = make()
    with gpu_sizes("sm_90"):
        assert ways(t, None) == [wanted, "pointers"]
    with gpu_sizes("sm_80"):
        assert ways(t) == [wanted if wanted.startswith(("wide", "pointers")) else f"wide {wanted}"]
    assert ways(t, t) == ["pointers", "pointers"]


def products():
    """Operands [Z M K], [Z K N] of every layout, the mask of one of them, and a result of either layout."""
    a, w, mask, bias = half(72, 88), half(136, 88), half(72, 88), half(136)
    z, b = half(2, 72, 40), half(2, 40, 48)
    yield a, w.mT, bias, None, "", half(72, 136)
    yield a.mT.contiguous().mT, w.mT.contiguous(), None, None, "", half(136, 72).mT
    yield a, w.mT, None, mask, "a", half(72, 136)
    yield a, w.mT, None, half(88, 136), "b", half(72, 136)
    yield a, w.mT, None, half(72, 136), "y", half(72, 136)
    yield z, b, half(2, 48), None, "", half(2, 72, 48)
    yield a[:, :83], w.mT[:83], None, mask[:, :83], "a", half(72, 136)


def products_of_few_tiles():
    """As above, of a long K, which is split: every option, layout and dtype that the sum of the parts may meet."""
    a, w, mask, bias = half(24, 1400), half(40, 1400), half(24, 40), half(40)
    z, b = torch.randn(2, 24, 500), torch.randn(2, 500, 40)
    yield a, w.mT, bias, None, "", half(24, 40)
    yield a.mT.contiguous().mT, w.mT.contiguous(), bias, mask, "y", half(40, 24).mT
    yield a, w.mT, half(24, 40), half(24, 1400), "a", half(24, 40)
    yield a[:, :1399], w.mT[:1399], None, half(1399, 40), "b", half(24, 41)[:, 1:]
    yield z, b, torch.randn(2, 40), None, "", torch.empty(2, 40, 24).mT
    yield (
        z,
        b[:1].expand(2, 500, 40),
        torch.randn(1, 24, 40).expand(2, 24, 40),
        z[..., :40],
        "y",
        torch.empty(2, 24, 40),
    )
    yield z[0].double(), b[0].double()[:, :37:2], None, None, "", torch.empty(24, 19).double()


@pytest.mark.parametrize(
    ("tiles", "elements", "steps", "wanted"),
    [
        (16, 512 * 512, 128, (8, 16)),  # One wave.
        (4, 256 * 256, 128, (16, 8)),  # Of more parts the sums cost more than they save.
        (1, 16, 22, (5, 5)),  # Parts of four steps at least; the last one is shorter.
        (1, 16, 20, (1, 20)),  # Not worth a launch.
        (64, 2**16, 1024, (2, 512)),
        (65, 2**16, 1024, (1, 1024)),
        (0, 0, 64, (1, 64)),
        (1, 16, 0, (1, 0)),
    ],
)
def test_parts_of_a_product(tiles, elements, steps, wanted):
    with gpu_sizes():
        assert product_parts(torch.device("cpu"), tiles, elements, steps) == wanted
    assert product_parts(torch.device("cpu"), tiles, elements, steps) == (1, steps)


def test_parts_are_added_in_order_and_rounded_once():
    """To the bit the float32 sums of whole products of the parts; relu of the sum; c is y itself."""
    a, b, c = half(24, 1400), half(1400, 40), torch.randn(24, 40)
    with gpu_sizes():
        parts = []
        for k in range(0, 1400, 320):
            parts.append(torch.empty(24, 40))
            matmul_into(parts[-1], a[:, k : k + 320], b[k : k + 320], None)
        for y in (c.clone(), half(24, 40)):
            matmul_into(y, a, b, y if y.dtype == c.dtype else c, relu=True)
            assert torch.equal(y, (sum(parts[1:], parts[0]) + c).relu().to(y.dtype))


def test_several_tiles_of_a_program(monkeypatch):
    """As on a GPU with 2 multiprocessors for 9 tiles, in partial tiles too; every result is written."""
    monkeypatch.setattr(matmul_triton, "multiprocessors", lambda device: 2)
    a, b = half(264, 72), half(520, 72).mT
    for tile, programs in ((None, 15), (Tile(128, 64, 256, 8), 2)):
        if tile is not None:
            monkeypatch.setattr(matmul_triton, "tile", lambda *args, tile=tile: tile)
        with recording("sm_90") as launches:
            matmul_into(half(264, 520), a, b, None)
        assert (launches[0].constants["PERSISTENT"], launches[0].grid) == (tile is not None, (programs,))
    for run in (gpu_sizes, emulated_on_sm_90):
        y = torch.full((264, 520), float("nan")).bfloat16()
        with run():
            matmul_into(y, a, b, None)
        torch.testing.assert_close(y.double(), a.double() @ b.double(), rtol=2**-8, atol=1e-4)
        # Added to itself, in float32, and the tile by halves.
        y = y.float()
        wanted = y.double() + a.double() @ b.double()
        with run():
            matmul_into(y, a, b, y)
        torch.testing.assert_close(y.double(), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("sizes", [gpu_sizes, contextlib.nullcontext])
def test_columns_of_float32_are_copied_to_rows_first_on_a_gpu(sizes, batch):
    a, w = torch.randn(*batch, 72, 130), torch.randn(*batch, 136, 130)
    y, names = torch.empty(*batch, 72, 136), []
    with sizes(), noting(lambda jit: names.append(jit.fn.__name__)):
        matmul_into(y, a, w.mT, None)
    assert names == ["_channels_last_kernel"] * (sizes is gpu_sizes) + ["_matmul_kernel"]
    torch.testing.assert_close(y, a @ w.mT, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sizes", [gpu_sizes, contextlib.nullcontext])
def test_a_large_gradients_mask_is_applied_once_on_a_gpu(sizes):
    x, w, b = torch.randn(2048, 16), torch.randn(1024, 16), torch.randn(1024)
    inputs = [t.requires_grad_() for t in (x, w, b)]
    names: list = []
    with sizes():
        y = lab.linear(*inputs, activation="relu")
        with noting(lambda jit: names.append(jit.fn.__name__)):
            found = torch.autograd.grad(y, inputs, y.detach())
    assert names.count("_relu_mask_kernel") == (sizes is gpu_sizes)
    for got, want in zip(found, torch.autograd.grad(F.relu(F.linear(*inputs)), inputs, y.detach()), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * want.abs().max().item())


@contextlib.contextmanager
def emulated_on_sm_90():
    faults = []
    options = {"order": "together", "exact": True, "check": True, "late": True}

    def run(launch):
        faults.extend(execute_launch(launch, TARGETS["sm_90"], "torch", "forward", BUDGET, options).executed.faults)

    with emulated(TARGETS["sm_90"], run):
        yield
    assert not faults


@contextlib.contextmanager
def interpreted():
    with gpu_sizes(), interpreting():
        yield


@pytest.mark.parametrize("run", [gpu_sizes, interpreted, emulated_on_sm_90])
@pytest.mark.parametrize("products", [products, products_of_few_tiles])
def test_products(products, run):
    for a, b, bias, mask, masked, y in products():
        wide = {"a": a.double(), "b": b.double()}
        if masked in wide:
            wide[masked] = wide[masked] * (mask > 0)
        added = 0 if bias is None else bias.double() if bias.ndim == a.ndim else bias.double().unsqueeze(-2)
        wanted = wide["a"] @ wide["b"] + added
        if masked == "y":
            wanted = wanted * (mask > 0)
        with recording("sm_90") as launches:
            matmul_into(y, a, b, bias, mask, masked)
        assert launches[-1].jit.fn.__name__ == NAMES[products]
        y.fill_(float("nan"))
        with run():
            matmul_into(y, a, b, bias, mask, masked)
        # One rounding of the result, beside that of a sum of K terms in float32.
        allowed = torch.finfo(y.dtype).eps * wanted.abs() + 2**-20 * (wide["a"].abs() @ wide["b"].abs())
        assert ((y.double() - wanted).abs() <= allowed).all(), masked


NAMES = {products: "_matmul_kernel", products_of_few_tiles: "_sum_parts_kernel"}
