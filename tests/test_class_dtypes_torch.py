"""Classes of every integer dtype beside an ignore_index and a V that the dtype does not hold: no number wraps round."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F

import gradlab.torch as lab
from gradlab.kernels.class_losses import class_range_triton

# dtype, V, ignore_index, classes, the row whose class is out of range.
CASES = {
    "uint8 255 is not -1": ("uint8", 5, -1, [0, 255, 3], 1),
    "uint8 240 is below 300": ("uint8", 300, -100, [0, 240, 3], None),
    "uint8 255 is ignored": ("uint8", 5, 255, [0, 255, 3], None),
    "uint8 3 is not 259": ("uint8", 5, 259, [0, 3, 1], None),
    "uint8 255 is not 2^40 - 1": ("uint8", 5, 2**40 - 1, [0, 255, 3], 1),
    "int32 1 is not 2^32 + 1": ("int32", 5, 2**32 + 1, [0, 1, 3], None),
    "int32 -1 is not 2^32 - 1": ("int32", 5, 2**32 - 1, [0, -1, 3], 1),
    "int32 -1 is ignored": ("int32", 5, -1, [0, -1, 3], None),
    "int64 2^40 is ignored": ("int64", 5, 2**40, [0, 2**40, 3], None),
    "int64 2^32 + 1 is not 1": ("int64", 5, 1, [0, 2**32 + 1, 3], 1),
}
BOTH = pytest.mark.parametrize("op", ["cross_entropy", "linear_cross_entropy"])


@BOTH
@pytest.mark.parametrize("case", CASES)
def test_no_class_wraps_round(device, op, case):
    dtype, V, ignore_index, classes, wrong = CASES[case]
    t = torch.tensor(classes, dtype=getattr(torch, dtype), device=device)
    h, w = (torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in ((3, 2), (V, 2)))

    def loss(fn, t):
        found = []
        for reduction in ("mean", "none"):
            y = fn(t, ignore_index=ignore_index, reduction=reduction)
            found += [y, *torch.autograd.grad(y.sum(), (h, w))]
        return found

    def ours(t, **options):
        if op == "cross_entropy":
            return lab.cross_entropy(F.linear(h, w), t, **options)
        return lab.linear_cross_entropy(h, w, t, **options)

    if wrong is not None and device.type == "cpu":
        with pytest.raises(IndexError, match=rf"{op}: target\[{wrong}\] is {classes[wrong]}, wanted a class in"):
            ours(t, ignore_index=ignore_index)
        return
    if wrong is not None:
        assert ours(t, ignore_index=ignore_index, reduction="none").isnan().nonzero().flatten().tolist() == [wrong]
        torch.cuda.synchronize()
        with pytest.raises(IndexError, match=rf"is {classes[wrong]}, wanted"):
            lab.raise_device_errors()
        return
    want = loss(lambda t, **options: F.cross_entropy(F.linear(h, w), t, **options), t.long())
    for got, exact in zip(loss(ours, t), want, strict=True):
        torch.testing.assert_close(got, exact, rtol=0, atol=2 * (8 + V) * 2.0**-53 * exact.detach().abs().max().item())


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_that_looks_on_a_gpu_compares_alike(device, case):
    dtype, V, ignore_index, classes, wrong = CASES[case]
    t = torch.tensor(classes, dtype=getattr(torch, dtype), device=device)
    found = class_range_triton.out_of_range(t, V, ignore_index)[0].tolist()
    assert found == ([3, 0] if wrong is None else [wrong, classes[wrong]])


@BOTH
def test_an_ignore_index_past_64_bits_is_refused_in_a_line(op):
    t, x = torch.tensor([0]), torch.zeros(1, 1)
    given = (x, t) if op == "cross_entropy" else (x, x, t)
    with pytest.raises(ValueError, match=rf"^{op}: ignore_index is {2**63}, wanted an int of 64 bits.*$"):
        getattr(lab, op)(*given, ignore_index=2**63)
