"""Launches: where a kernel runs, with whose sizes, and what is noted instead of run."""

import inspect
import sys
import threading
import types

import pytest

torch = pytest.importorskip("torch")

import triton
import triton.language as tl

import gradlab.torch as lab
from gradlab.autodiff import adam_torch
from gradlab.kernels import adam_triton, linear_triton, relu_triton, sgd_triton
from gradlab.kernels.class_losses import class_range_triton as classes
from gradlab.kernels.common import matmul_triton
from gradlab.kernels.runtime import compiled_triton, source_triton
from gradlab.kernels.runtime import launch_triton as launcher
from gradlab.kernels.spec import specs
from gradlab.profiling.machine_code import launches_torch
from gradlab.profiling.machine_code.compile_triton import begun
from gradlab.profiling.machine_code.launches_torch import source
from gradlab.profiling.machine_code.targets import TARGETS
from tests import kernel_launches


@launcher.kernel
def _twice(x):
    return x + x


@launcher.kernel
def _sum_of_twice(x_ptr, y_ptr, N, BN: tl.constexpr):
    n = tl.arange(0, BN)
    x = tl.load(x_ptr + n, mask=n < N, other=0.0)
    tl.store(y_ptr, tl.sum(_twice(x), axis=0))


def test_a_kernel_that_calls_a_kernel_and_a_reduction():
    x, y = torch.arange(5.0), torch.zeros(1)
    launcher.launch(_sum_of_twice, [1], x, y, 5, BN=8, writes=[y])
    assert y.item() == 20.0


def test_compiling_for_a_cpu_interpreting_and_compiling_for_cuda_in_turns():
    x = torch.randn(40, 40)
    for _ in range(2):
        with launcher.interpreting():
            assert torch.equal(relu_triton.relu_mask(x, x), x.relu())
        assert torch.equal(relu_triton.relu_mask(x, x), x.relu())
        with launcher.recording() as launches:
            relu_triton.relu_mask(x, x)
        assembly = begun(source(launches[0]), TARGETS["sm_90"], launches[0].warps, launches[0].stages)()
        assert "st.global" in assembly


def test_threads_take_turns():
    x = torch.randn(8, 8, dtype=torch.float64)
    results = []

    def work():
        for _ in range(3):
            results.append(linear_triton.matmul(x, x, None, None, "", False, False))

    threads = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(results) == 12
    assert all(torch.equal(r, results[0]) for r in results)


def test_an_empty_grid_launches_nothing():
    y = torch.ones(1)
    launcher.launch(_sum_of_twice, [0], torch.zeros(1), y, 1, BN=1, writes=[y])
    assert y.item() == 1.0


def test_a_gpus_sizes_on_a_cpu():
    """Within `gpu_sizes` a CPU runs exactly the launch that is noted for CUDA, and its own again afterwards."""
    x = torch.randn(70, 90)

    def grid():
        with pytest.MonkeyPatch.context() as patch:
            launched, launch = [], matmul_triton.launch
            patch.setattr(
                matmul_triton,
                "launch",
                lambda jit, grid, *a, **k: (launched.append((grid, k)), launch(jit, grid, *a, **k)),
            )
            y = linear_triton.matmul(x, x.t(), None, None, "", False, False)
        torch.testing.assert_close(y, x @ x.t(), rtol=1e-5, atol=1e-4)
        ((grid, options),) = launched
        return tuple(grid), {name: options[name] for name in ("BM", "BK", "BN", "FULL_K")}

    with launcher.recording() as noted:
        linear_triton.matmul(x, x.t(), None, None, "", False, False)
    own = grid()
    with launcher.gpu_sizes():
        taken = grid()
    assert taken == (noted[0].grid, {name: noted[0].constants[name] for name in taken[1]})
    assert own == grid() != taken


@pytest.mark.parametrize(("size", "expected"), [(0, 16), (1, 16), (17, 32), (128, 128), (129, 128)])
def test_block(size, expected):
    assert launcher.block(size, 128) == expected


@pytest.fixture
def captured(monkeypatch):
    """From then on every device's current stream is captured into a CUDA graph, and to ask an event is an error."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def test_nothing_of_the_host_enters_a_captured_graph(captured):
    cuda = torch.device("cuda")
    with pytest.raises(ValueError, match=r"^some_op: stream is captured into a CUDA graph, wanted one that is not: "):
        launcher.on_device([1, 2], torch.int64, cuda, "some_op")
    assert launcher.on_device([1, 2], torch.int64, torch.device("cpu"), "some_op").tolist() == [1, 2]


def on_a_stream(monkeypatch):
    """The tensors are a CPU's; what is asked is whether a stream is captured, with a device that could have one."""
    real = launcher.refuse_capture
    for module in (launcher, adam_torch):
        monkeypatch.setattr(module, "refuse_capture", lambda op, device: real(op, torch.device("cuda")))


@pytest.mark.parametrize("op", ["adam_step", "adam_", "sgd_", "clip_grad_norm_"])
def test_several_tensors_refuse_capture_and_change_nothing(monkeypatch, captured, op):
    """Their table would be read again at each replay, from where it lay on the host."""
    ps = [torch.ones(3, requires_grad=True) for _ in range(2)]
    for p in ps:
        p.grad = torch.ones(3)
    adam = adam_triton.scalars(lr=0.1, step=1, beta1=0.9, beta2=0.9, eps=0.1, weight_decay=0.0)
    rates = torch.tensor([0.1, 0.2])
    stepped = torch.func.vmap(lambda lr: lab.adam_step(ps[0], ps[0], ps[0], ps[0], step=1, lr=lr)[0])
    call = {
        "adam_step": lambda: stepped(rates),
        "adam_": lambda: adam_triton.adam_(ps, ps, ps, ps, [], adam * 2),
        "sgd_": lambda: sgd_triton.sgd_(ps, ps, ps, sgd_triton.scalars(lr=0.1, momentum=0.9) * 2),
        "clip_grad_norm_": lambda: lab.clip_grad_norm_(ps, 0.1),
    }[op]
    on_a_stream(monkeypatch)
    with pytest.raises(ValueError, match=r"^(adam_step|sgd_step|clip_grad_norm_): stream is captured into a CUDA"):
        call()
    assert all(torch.equal(t, torch.ones(3)) for p in ps for t in (p, p.grad))


@pytest.mark.parametrize("op", ["adam_step", "adam_step of a rate", "sgd_step", "clip_grad_norm_"])
def test_a_single_tensor_is_stepped_in_a_captured_stream(monkeypatch, captured, op):
    """Forward and backward: all that comes from the host are the kernel's own arguments."""
    p, rate = torch.ones(3, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    step = {
        "adam_step": lambda: lab.adam_step(p, p, p, p, step=1)[0],
        "adam_step of a rate": lambda: lab.adam_step(p, p, p, p, step=1, lr=rate)[0],
        "sgd_step": lambda: lab.sgd_step(p, p)[0],
        "clip_grad_norm_": lambda: lab.clip_grad_norm_([p], 0.1) * p,
    }[op]

    def run():
        p.grad = torch.ones(3)
        step().sum().backward()
        return p.grad

    want = run()
    on_a_stream(monkeypatch)
    assert torch.equal(run(), want)


def test_a_rate_on_the_host_refuses_capture(captured):
    with pytest.raises(ValueError, match=r"^adam_step: stream is captured into a CUDA graph"):
        adam_torch._rate(torch.tensor(0.1), types.SimpleNamespace(device=torch.device("cuda")))


def test_what_reads_the_host_is_left_out_of_inductors_graphs():
    for name in ("adam_", "sgd_", "global_norm", "scale_"):
        assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.gradlab, name).default.tags, name
    for name in ("adam_pullback", "sgd_pullback", "clip_factor", "matmul"):
        assert torch.Tag.cudagraph_unsafe not in getattr(torch.ops.gradlab, name).default.tags, name


def test_no_event_is_asked_while_a_graph_is_captured(captured):
    """cudaEventQuery would invalidate the capture. The note stays, and is raised after it."""

    class Event:
        def query(self):
            raise AssertionError("asked during a capture")

    class OnCuda:
        is_cuda = True

    try:
        classes.note(classes.Note(Event(), torch.tensor([[2, 9]]), "cross_entropy", 6, 5, 1))
        lab.raise_device_errors()
        classes.refuse_out_of_range("cross_entropy", OnCuda(), 5, 1, -100)
        assert len(classes._pending) == 1
    finally:
        classes._pending.clear()


READS = ["item", "tolist", "numpy", "cpu", "nonzero", "to"]
READS += ["__bool__", "__int__", "__float__", "__index__", "__contains__", "__array__", "__complex__"]


@pytest.fixture
def on_cuda(monkeypatch):
    """From then on tensors say that they are on CUDA, and what makes the host wait for one is an error.

    What `torch.tensor` makes without a device is the host's, and may be read. Yields the events that were recorded.
    """
    hosts, recorded, tensor, empty = [], [], torch.tensor, torch.empty

    def of_host(*args, **options):
        hosts.append(tensor(*args, **options))
        return hosts[-1]

    def reading(name, read):
        def call(t, *args, **options):
            # A device that is given as such is another tensor's.
            to_host = name != "to" or any(isinstance(a, str) and a == "cpu" for a in (*args, *options.values()))
            # torch's own constructors look at a rate, once.
            torchs = sys._getframe(1).f_globals["__name__"].startswith("torch.optim")
            if to_host and not torchs and not any(t is one for one in hosts):
                raise AssertionError(f"{name}() waits for the device")
            return read(t, *args, **options)

        return call

    class Event:
        def query(self):
            return False

        def synchronize(self):
            raise AssertionError("waits for an event")

        wait = synchronize

    class Stream:
        def record_event(self):
            recorded.append(Event())
            return recorded[-1]

    def synchronize(*args):
        raise AssertionError("waits for the device")

    monkeypatch.setattr(torch, "tensor", of_host)
    monkeypatch.setattr(torch, "empty", lambda *args, pin_memory=False, **options: empty(*args, **options))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream())
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda t: True))
    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, reading(name, getattr(torch.Tensor, name)))
    for name in ("equal", "allclose", "is_nonzero", "nonzero", "unique", "masked_select"):
        monkeypatch.setattr(torch, name, synchronize)
    yield recorded
    classes._pending.clear()


def test_no_op_makes_the_host_wait(on_cuda):
    """Every case of every op, forward and backward, and every other way to launch: nothing reads a tensor's value."""
    launched = 0
    for op in specs().values():
        for case in op.select("check"):
            launched += len(launches_torch.find(op.at(case), "float32"))
    with launcher.recording() as launches:
        for call in kernel_launches.CALLS:
            call(torch.float32)
    assert launched > 200
    assert len(launches) > 200
    # Classes out of range were looked for as on CUDA.
    assert len(on_cuda) > 20


def test_waiting_would_be_seen(on_cuda):
    x = torch.ones(1)
    assert torch.tensor(1.0).item() == 1.0
    for read in (bool, int, float, lambda t: t.item(), lambda t: t.tolist(), lambda t: t.to("cpu"), torch.equal):
        with pytest.raises(AssertionError, match="waits for the device"):
            read(x)


def test_what_is_forgotten_is_loaded_anew(monkeypatch):
    """A benchmark's second call finds what the first left on disk, not in memory; plans know kernels too."""
    x, loaded, real = torch.randn(8), [], compiled_triton.compiled
    monkeypatch.setattr(compiled_triton, "compiled", lambda made: loaded.append(made.name) or real(made))
    for _ in range(3):
        lab.relu(x)
    assert len(loaded) <= 1
    launcher.forget()
    loaded.clear()
    lab.relu(x)
    assert loaded == ["_relu_mask_kernel"]


def test_a_kernels_source_is_cut_out_as_inspect_would():
    # Where Triton takes lines otherwise, `made` is to follow, or to go.
    assert triton.runtime.jit.inspect is inspect
    assert len(launcher.KERNELS) > 50
    for jit in launcher.KERNELS:
        assert (jit.raw_src, jit.starting_line_number) == inspect.getsourcelines(jit.fn), jit.fn.__name__
    made = eval("lambda x: x")
    with pytest.raises(OSError, match="source"):
        source_triton.lines(made)
