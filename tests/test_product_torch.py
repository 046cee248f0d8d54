"""The product of two matrices by descriptors of a GPU's TMA, and by pointers where a matrix does not lie so."""

import contextlib

import pytest

torch = pytest.importorskip("torch")

from gradlab.kernels.common.matmul_triton import matmul_into
from gradlab.kernels.common.product_triton import ways
from gradlab.kernels.runtime.launch_triton import gpu_sizes, interpreting
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
    "float32": (lambda: torch.randn(24, 40), "pointers"),
}


@pytest.mark.parametrize(("make", "wanted"), LAID.values(), ids=LAID)
def test_what_a_descriptor_can_name(make, wanted):
    t = make()
    with gpu_sizes("sm_90"):
        assert ways(t, None) == [wanted, "pointers"]
    for where in (gpu_sizes("sm_80"), contextlib.nullcontext()):
        with where:
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
def test_products_by_descriptors(run):
    for a, b, bias, mask, masked, y in products():
        wide = {"a": a.double(), "b": b.double()}
        if masked in wide:
            wide[masked] = wide[masked] * (mask > 0)
        wanted = wide["a"] @ wide["b"] + (0 if bias is None else bias.double().unsqueeze(-2))
        if masked == "y":
            wanted = wanted * (mask > 0)
        y.fill_(float("nan"))
        with run():
            matmul_into(y, a, b, bias, mask, masked)
        # One rounding of the result, beside that of a sum of K terms in float32.
        allowed = 2**-8 * wanted.abs() + 2**-20 * (wide["a"].abs() @ wide["b"].abs())
        assert ((y.double() - wanted).abs() <= allowed).all(), masked
