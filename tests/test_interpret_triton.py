"""The lab's kernels in Triton's interpreter: the language is switched while one runs, bfloat16 staged or refused."""

import pytest

torch = pytest.importorskip("torch")

import triton.language as tl
from triton.runtime.jit import JITFunction

import gradlab.torch as lab
from gradlab.kernels import linear_triton, relu_triton
from gradlab.kernels.runtime import interpret_triton
from gradlab.kernels.runtime import launch_triton as launching


@launching.kernel
def _twice(x):
    return x + x


@launching.kernel
def _sum_of_twice(x_ptr, y_ptr, N, BN: tl.constexpr):
    n = tl.arange(0, BN)
    x = tl.load(x_ptr + n, mask=n < N, other=0.0)
    tl.store(y_ptr, tl.sum(_twice(x), axis=0))


@launching.kernel
def _third(y_ptr, c: tl.float64):
    tl.store(y_ptr, c.to(tl.float64))


@launching.kernel
def _wrong(x_ptr, N):
    tl.store(x_ptr + tl.no_such_function(N), 0.0)


@pytest.fixture(autouse=True)
def interpreting():
    with launching.interpreting():
        yield


def members():
    return [dict(vars(place)) for place in interpret_triton._switched]


def test_a_kernel_that_calls_a_kernel_and_a_reduction():
    x, y = torch.arange(5.0), torch.zeros(1)
    launching.launch(_sum_of_twice, [1], x, y, 5, BN=8, writes=[y])
    assert y.item() == 20.0


def test_a_float_whose_dtype_the_kernel_says_and_a_row_of_pairs():
    """One parameter is stepped by a kernel of its own, which takes its numbers as arguments, not from memory."""
    y = torch.zeros(1, dtype=torch.float64)
    launching.launch(_third, [1], y, 1 / 3, writes=[y])
    assert y.item() == 1 / 3
    x, t = torch.randn(2, 1024).bfloat16(), torch.tensor([1, 1023])
    with launching.gpu_sizes():
        loss = lab.cross_entropy(x, t)
    assert torch.allclose(loss, torch.nn.functional.cross_entropy(x, t), rtol=2.0**-7)


def test_language_is_put_back_after_a_launch_and_after_an_error():
    relu_triton.relu_mask(torch.randn(3), torch.randn(3))
    before = members()
    relu_triton.relu_mask(torch.randn(3), torch.randn(3))
    with pytest.raises(AttributeError):
        launching.launch(_wrong, [1], torch.zeros(1), 1, writes=[torch.zeros(1)])
    assert members() == before
    assert isinstance(tl.sum, JITFunction)


def test_what_a_gpu_compiles_is_noted_not_interpreted():
    assert launching.interpreted(torch.device("cpu"))
    with launching.recording() as noted:
        assert not launching.interpreted(torch.device("cpu"))
        relu_triton.relu_mask(torch.randn(3), torch.randn(3))
    assert len(noted) == 1


def test_staging_keeps_strides_and_rounds_back():
    x = torch.randn(4, 6).to(torch.bfloat16)
    for t in (x.t(), x[:, ::2], x[:1].expand(4, 6), x[1:3, 2:4]):
        with interpret_triton.staged([t], []) as stage:
            wide = stage(t)
            assert wide.dtype == torch.float32
            assert wide.stride() == t.stride()
            assert torch.equal(wide, t.float())
    with interpret_triton.staged([x], [x]) as stage:
        stage(x).fill_(1 + 3 * 2.0**-8)
    assert (x == 1 + 2.0**-6).all()


def _stepped(p, **options):
    return lab.adam_step(p, p, p, p, step=1, **options)


TABLES = {
    "adam_step": _stepped,
    "Adam": lambda p: _optimized(lab.Adam, p),
    "Adam, bfloat16 state": lambda p: _optimized(lab.Adam, p.float(), state_dtype=torch.bfloat16),
    "sgd_step": lambda p: lab.sgd_step(p, p),
    "SGD": lambda p: _optimized(lab.SGD, p),
    "clip_grad_norm_": lambda p: lab.clip_grad_norm_([_parameter(p)], 0.1),
}


def _parameter(p):
    made = torch.nn.Parameter(p.clone())
    made.grad = torch.ones_like(made)
    return made


def _optimized(kind, p, **options):
    made = _parameter(p)
    kind([made], lr=0.1, **options).step()
    return made


@pytest.mark.parametrize("name", TABLES)
def test_bfloat16_behind_a_table_of_addresses_is_refused(name):
    """The interpreter would read its bytes as another type's; what the tensors hold stays as it was."""
    p = torch.ones(20, dtype=torch.bfloat16)
    message = r"^(adam_step|sgd_step|clip_grad_norm_): a tensor is bfloat16, wanted .* under GRADLAB_CPU=interpret: "
    with pytest.raises(TypeError, match=message) as caught:
        TABLES[name](p)
    assert "\n" not in str(caught.value)
    assert (p == 1).all()


def test_the_environment_chooses(monkeypatch):
    monkeypatch.delenv("GRADLAB_CPU", raising=False)
    assert launching._from_environment() is False
    monkeypatch.setenv("GRADLAB_CPU", "interpret")
    assert launching._from_environment() is True
    monkeypatch.setenv("GRADLAB_CPU", "both")
    with pytest.raises(ValueError, match=r"^gradlab: GRADLAB_CPU is 'both', wanted compile or interpret$"):
        launching._from_environment()


def test_a_launch_of_several_axes_runs_every_program():
    a, b = torch.randn(3, 20, 17, dtype=torch.float64), torch.randn(3, 17, 30, dtype=torch.float64)
    with launching.gpu_sizes():
        y = linear_triton.matmul(a, b, None, None, "", False, False)
    torch.testing.assert_close(y, a @ b, rtol=0, atol=1e-13)
