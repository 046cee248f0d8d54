"""Plans of eager calls on a CPU: followed from a signature's second call on, and only where nothing else can differ."""

import threading

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import torch.nn.functional as F

import gradlab.torch as lab
from gradlab.kernels.common.elementwise_triton import times
from gradlab.kernels.relu_triton import relu_mask
from gradlab.kernels.runtime import memory_triton as memory
from gradlab.kernels.runtime import plans_triton
from gradlab.kernels.runtime.plans_triton import Plan, Plans

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="plans are for CPUs")


def planned():
    return [plan for kept in plans_triton._EVERY for plan in kept.values() if isinstance(plan, Plan)]


def called(fn, *args, **options):
    """Whether calls of `fn` from the second on are answered by a plan."""
    ran = []
    plans = Plans(lambda *a, **o: (ran.append(1), fn(*a, **o))[1])
    results = [plans((memory.signature((*args, *options.values()))), args, options) for _ in range(4)]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])
    # At the first call, and on stand-ins at the second.
    return len(ran) == 2


CALLS = {
    "relu": (lab.relu, F.relu, lambda: [torch.randn(3, 5)]),
    "relu strided": (lab.relu, F.relu, lambda: [torch.randn(5, 3).t()]),
    "linear": (lab.linear, F.linear, lambda: [torch.randn(2, 3, 4), torch.randn(5, 4), torch.randn(5)]),
    "cross_entropy": (lab.cross_entropy, F.cross_entropy, lambda: [torch.randn(6, 4), torch.randint(4, (6,))]),
    "mse_loss": (lab.mse_loss, F.mse_loss, lambda: [torch.randn(3, 4), torch.randn(3, 4)]),
    "conv2d": (lab.conv2d, F.conv2d, lambda: [torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3), torch.randn(4)]),
    "max_pool2d": (lambda x: lab.max_pool2d(x, 2), lambda x: F.max_pool2d(x, 2), lambda: [torch.randn(2, 3, 6, 6)]),
}


@pytest.mark.parametrize(("op", "native", "make"), CALLS.values(), ids=CALLS)
def test_later_calls_are_answered_by_a_plan_with_new_numbers(op, native, make):
    before = 0
    for turn in range(5):
        args = make()
        y = op(*args)
        torch.testing.assert_close(y, native(*args), atol=1e-5, rtol=1e-5)
        assert y.stride() == native(*args).stride()
        assert not turn or y.data_ptr() != before or y.numel() == 0
        before, kept = y.data_ptr(), y
    assert planned()
    assert kept.numel()


def test_training_is_the_same_with_plans():
    w = torch.randn(4, 6, requires_grad=True)
    for _ in range(4):
        x, t = torch.randn(5, 6), torch.randint(4, (5,))
        ours = torch.autograd.grad(lab.cross_entropy(lab.linear(x, w), t), w)
        torch.testing.assert_close(ours, torch.autograd.grad(F.cross_entropy(F.linear(x, w), t), w))
    assert planned()


def test_arguments_that_were_one_tensor_are_distinguished_later():
    x, g = torch.randn(7), torch.randn(7)
    for _ in range(3):
        relu_mask(x, x)
        times(x, x)
    torch.testing.assert_close(relu_mask(g, x), torch.where(x > 0, g, 0.0))
    torch.testing.assert_close(times(g, x), g * x)


def test_a_class_out_of_range_is_found_in_every_call():
    x, t = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    for _ in range(4):
        lab.cross_entropy(x, t)
    t[3] = 3
    with pytest.raises(IndexError, match=r"target\[3\] is 3"):
        lab.cross_entropy(x, t)
    many = torch.zeros(1000, dtype=torch.int64)
    for _ in range(4):
        lab.cross_entropy(torch.zeros(1000, 3), many)
    many[999] = -1
    with pytest.raises(IndexError, match=r"target\[999\] is -1"):
        lab.cross_entropy(torch.zeros(1000, 3), many)


def test_arguments_are_refused_after_others_that_equal_them_passed():
    x, t, w = torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), torch.ones(3)
    for _ in range(4):
        lab.cross_entropy(x, t, ignore_index=1)
        lab.cross_entropy(x, t, w)
    with pytest.raises(TypeError, match="ignore_index is True"):
        lab.cross_entropy(x, t, ignore_index=True)
    with pytest.raises(ValueError, match="requires a gradient"), torch.no_grad():
        lab.cross_entropy(x, t, w.requires_grad_())
    with pytest.raises(TypeError, match="relu: input is a list"):
        lab.relu([1.0])


def test_autocast_and_lazy_tensors_are_seen_after_plain_ones():
    x, w = torch.randn(3, 4), torch.randn(5, 4)
    for _ in range(4):
        lab.linear(x, w)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lab.linear(x, w).dtype == torch.bfloat16
    torch.testing.assert_close(lab.linear(torch._neg_view(x), w), F.linear(-x, w), atol=1e-5, rtol=1e-5)


def test_what_a_plan_follows_and_what_it_does_not():
    x, y = torch.randn(4), torch.randn(4)
    assert called(lambda a, b: relu_mask(a, b) + b, x, y)
    assert called(lambda a, b: (relu_mask(a, b).view(2, 2), b * 2), x, y)
    assert called(lambda a, *, scale: (a * scale)[1:3], x, scale=2.5)
    assert called(lambda a: None, x)
    # A value is looked at, or a random number drawn, or an argument given back.
    assert not called(lambda a: relu_mask(a, a) if a.sum().item() < 1e9 else a, x)
    assert not called(lambda a: a + 0 * torch.rand(4), x)
    assert not called(lambda a: a, x)
    assert not called(lambda a: [relu_mask(a, a)], x)
    assert not called(lambda a: (relu_mask(a, a), None), x)
    assert not called(lambda a: (), x)
    assert not called(lambda a: torch.cat([a, a]), x)
    assert not called(lambda a: a.nonzero(), x)


def test_large_tensors_have_no_stand_ins(monkeypatch):
    monkeypatch.setattr(plans_triton, "_LARGE", 8)
    assert not called(lambda a: relu_mask(a, a), torch.randn(9))
    assert called(lambda a: relu_mask(a, a), torch.randn(8))


def test_memory_that_a_function_lets_go_is_not_held_to_its_end(monkeypatch):
    monkeypatch.setattr(plans_triton, "_SCRATCH", 16)
    assert called(lambda a: relu_mask(relu_mask(a, a), a), torch.randn(16))
    assert not called(lambda a: relu_mask(relu_mask(relu_mask(a, a), a), a), torch.randn(16))


def test_the_old_make_room_for_the_new(monkeypatch):
    monkeypatch.setattr(plans_triton, "MOST", 3)
    plans = Plans(lambda a: relu_mask(a, a))
    for n in range(1, 20):
        x = torch.randn(n)
        for _ in range(3):
            torch.testing.assert_close(plans(memory.signature((x,)), (x,)), F.relu(x))
        assert len(plans._plans) <= 3


def test_other_threads_run_while_one_notes():
    x, inside, seen = torch.randn(6), threading.Event(), []

    def slow(a):
        if plans_triton.noting():
            inside.set()
            other.join()
        return relu_mask(a, a)

    def elsewhere():
        assert inside.wait(60)
        seen.append((plans_triton.noting(), relu_mask(x, x)))

    other = threading.Thread(target=elsewhere)
    other.start()
    plans = Plans(slow)
    for _ in range(3):
        torch.testing.assert_close(plans(memory.signature((x,)), (x,)), F.relu(x))
    other.join()
    assert not seen[0][0]
    torch.testing.assert_close(seen[0][1], F.relu(x))


def test_what_is_given_away_is_remembered():
    with torch.no_grad():
        for _ in range(4):
            lab.cross_entropy(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), inplace=True)
    x = torch.randn(4, 3, requires_grad=True) * 1
    lab.cross_entropy(x, torch.zeros(4, dtype=torch.int64), inplace=True)
    with pytest.raises(ValueError, match="given away"), torch.no_grad():
        lab.cross_entropy(x, torch.zeros(4, dtype=torch.int64), inplace=True)
