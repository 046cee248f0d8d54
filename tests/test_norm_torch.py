"""clip_grad_norm_ on torch against torch.nn.utils', the norm that it is made of, and SGD's clipping."""

import copy
import functools

import pytest

torch = pytest.importorskip("torch")

import gradlab.torch as lab
from gradlab.kernels.optimizers import multi_tensor_triton, norm_triton
from tests.kernel_faults import plant


def with_gradients(device, *dtypes, scale=1.0):
    shapes = [(3, 4), (7,), (), (2, 3, 4), (0, 5)]
    ps = [torch.nn.Parameter(torch.zeros(s, device=device, dtype=d)) for d in dtypes for s in shapes]
    for p in ps:
        p.grad = (torch.randn(p.shape, device=device) * scale).to(p.dtype)
    return ps


def compare(device, *dtypes, max_norm=1.0, scale=1.0, atol=1e-15):
    ours = with_gradients(device, *dtypes, scale=scale)
    theirs = copy.deepcopy(ours)
    for p, q in zip(ours, theirs, strict=True):
        q.grad = p.grad.clone()
    norm = lab.clip_grad_norm_(iter(ours), max_norm)
    want = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    torch.testing.assert_close(norm, want, rtol=atol * 8, atol=0, check_dtype=len(dtypes) == 1)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=4 * atol)
    return norm


COMPARISONS = {
    "clipped": lambda device: compare(device, torch.float64),
    "float32": lambda device: compare(device, torch.float32, atol=1e-6),
    "two dtypes": lambda device: compare(device, torch.float64, torch.float32, atol=1e-6),
    "large": lambda device: compare(device, torch.float64, scale=1e30),
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_equals_torch(device, name):
    COMPARISONS[name](device)


@pytest.mark.parametrize("max_norm", [0.0, 5.0, 1e9, torch.inf])
def test_any_largest_norm(device, max_norm):
    assert compare(device, torch.float64, max_norm=max_norm) > 1


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        ("_scale", (", True) * factor, True", ", True), True")),
        (
            "_scale",
            ("masked_load(x_ptr, e, E, ACC, False) * factor", "masked_load(x_ptr, e, E, ACC, False) * 0"),
        ),
        (
            "_scale",
            ("masked_load(x_ptr, e, E, ACC, False) * factor", "-masked_load(x_ptr, e, E, ACC, False) * factor"),
        ),
        ("_squares", ("sum_ += x * x", "sum_ += x")),
        ("_clip_kernel", ("norm = tl.sqrt(", "norm = (")),
    ],
)
def test_a_broken_kernel_fails(device, monkeypatch, tmp_path, kernel, fault, name):
    # One fault is in whole chunks alone: chunks of one element are.
    if "True) * factor" in fault[0]:
        monkeypatch.setattr(norm_triton, "launch_many", functools.partial(multi_tensor_triton.launch_many, chunk=1))
    plant(monkeypatch, tmp_path, norm_triton, kernel, fault)
    with pytest.raises(AssertionError):
        COMPARISONS[name](device)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_norm_that_is_not_finite(device, value):
    """Poisons as torch's does; asked for, it is an error that changes nothing."""
    ours = with_gradients(device, torch.float32)
    ours[1].grad[2] = value
    before = [p.grad.clone() for p in ours]
    with pytest.raises(
        RuntimeError, match=r"clip_grad_norm_: the norm of the gradients is (inf|nan), wanted a finite one"
    ):
        lab.clip_grad_norm_(ours, 1.0, error_if_nonfinite=True)
    for p, was in zip(ours, before, strict=True):
        torch.testing.assert_close(p.grad, was, equal_nan=True, rtol=0, atol=0)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    for q, was in zip(theirs, before, strict=True):
        q.grad = was
    torch.testing.assert_close(
        lab.clip_grad_norm_(ours, 1.0), torch.nn.utils.clip_grad_norm_(theirs, 1.0), equal_nan=True
    )
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad, equal_nan=True)


def test_chunks_are_summed_in_the_same_order_every_time(device, monkeypatch):
    """Chunks of 16, whole and masked, and more of them than the last kernel loads at once."""
    grads = [torch.randn(n, device=device) for n in (5, 16, 37, 64, 1)] + [torch.randn(9, device=device).half()]
    monkeypatch.setattr(norm_triton, "CHUNK", 16)
    monkeypatch.setattr(norm_triton, "TILE", 16)
    monkeypatch.setattr(norm_triton, "block", lambda size, most, least=16: 4)
    first = norm_triton.global_norm(grads, 1.0, None)
    want = torch.cat([g.double() for g in grads]).norm()
    torch.testing.assert_close(first[0], want, rtol=1e-6, atol=0)
    torch.testing.assert_close(first[1], 1 / (want + 1e-6), rtol=1e-6, atol=0)
    assert torch.equal(first, norm_triton.global_norm(grads, 1.0, None))


def test_layouts(device):
    """Transposed and sliced gradients are clipped where they lie; an expanded one is measured whole."""
    buffer = torch.randn(6, 8, dtype=torch.float64, device=device)
    p = torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.float64, device=device))
    p.grad = buffer[::2, 1:5].t()
    want, rest = buffer.clone(), p.grad.norm()
    want[::2, 1:5] *= 0.5 / (rest + 1e-6)
    torch.testing.assert_close(lab.clip_grad_norm_(p, 0.5), rest)
    torch.testing.assert_close(buffer, want)
    wide = torch.full((1,), 2.0, device=device).expand(9)
    assert norm_triton.global_norm([wide], 1.0, None)[0] == 6.0


def test_no_gradients(device):
    assert torch.equal(lab.clip_grad_norm_([torch.nn.Parameter(torch.ones(2, device=device))], 1.0), torch.tensor(0.0))
    assert norm_triton.global_norm([torch.ones(0, device=device)], 1.0, None).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, {"maximize": True}])
def test_sgd_clips_as_it_steps(device, options):
    """Two dtypes under one norm; the gradients stay as they are."""
    ours = with_gradients(device, torch.float64, torch.float32)
    theirs = copy.deepcopy(ours)
    a, b = lab.SGD(ours, lr=0.1, max_norm=0.5, **options), torch.optim.SGD(theirs, lr=0.1, **options)
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        given = [p.grad.clone() for p in ours]
        want = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        a.step()
        b.step()
        torch.testing.assert_close(a.grad_norm, want.double(), rtol=1e-6, atol=0)
        assert all(torch.equal(p.grad, g) for p, g in zip(ours, given, strict=True))
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-7)
        assert not p.numel() or p.detach().abs().max() > 1e-3


def parameter_with(grad):
    p = torch.nn.Parameter(torch.zeros(3, dtype=grad.dtype))
    p.grad = grad
    return p


ONES = torch.ones(3)
BAD = {
    "negative": (lambda: lab.clip_grad_norm_([], -1.0), ValueError, "clip_grad_norm_: max_norm is -1.0, wanted a number from 0"),
    "none": (lambda: lab.clip_grad_norm_([], None), ValueError, "clip_grad_norm_: max_norm is None, wanted a number from 0"),
    "type": (lambda: lab.clip_grad_norm_([], 1.0, 1.0), ValueError, "clip_grad_norm_: norm_type is 1.0, wanted 2"),
    "foreach": (lambda: lab.clip_grad_norm_([], 1.0, foreach=True), ValueError, "clip_grad_norm_: foreach is True, wanted False or None"),
    "sparse": (lambda: lab.clip_grad_norm_(parameter_with(ONES.to_sparse()), 1.0), TypeError, "clip_grad_norm_: layout of a gradient is torch.sparse_coo"),
    "complex": (lambda: lab.clip_grad_norm_(parameter_with(ONES * 1j), 1.0), TypeError, "clip_grad_norm_: dtype of a gradient is complex64"),
    "SGD": (lambda: lab.SGD([ONES], max_norm=-1.0), ValueError, "SGD: max_norm is -1.0, wanted a number from 0, or None"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
