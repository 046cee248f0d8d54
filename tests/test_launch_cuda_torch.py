"""Launches on CUDA, up to the driver: what reaches it is what Triton itself would have given it, launch for launch."""

import contextlib
import functools

import pytest

torch = pytest.importorskip("torch")

import triton
import triton.language as tl
from triton import knobs

import gradlab
import gradlab.torch as lab
from gradlab.kernels.private import private_triton
from gradlab.kernels.runtime import cuda_triton
from gradlab.kernels.runtime import launch_triton as launcher
from tests import stub_cuda

pytestmark = pytest.mark.skipif(not stub_cuda.usable(), reason="a stub of libcuda stands in for a GPU's")


@launcher.kernel
def _scaled(x_ptr, x_n, y_ptr, y_n, a_ptr, N, SCALE, BN: tl.constexpr, BK: tl.constexpr):
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    x = tl.load(x_ptr + n * x_n, mask=n < N, other=0.0) * SCALE
    if a_ptr is not None:
        x += tl.load(a_ptr)
    tl.store(y_ptr + n * y_n, x, mask=n < N)


@launcher.kernel
def _by_descriptor(x_ptr, y_ptr, M, N, BM: tl.constexpr, BN: tl.constexpr):
    x = tl.make_tensor_descriptor(x_ptr, [M, N], [N, 1], [BM, BN])
    y = tl.make_tensor_descriptor(y_ptr, [M, N], [N, 1], [BM, BN])
    m = tl.program_id(0) * BM
    y.store([m, 0], x.load([m, 0]) * 2.0)


@pytest.fixture(scope="module")
def stub():
    with stub_cuda.active() as stub:
        yield stub


@pytest.fixture
def triton_launches(monkeypatch):
    """The launches that Triton itself makes from here on."""
    made, run = [], triton.runtime.JITFunction.run

    def noted(self, *args, **options):
        made.append(self.fn.__name__)
        return run(self, *args, **options)

    monkeypatch.setattr(triton.runtime.JITFunction, "run", noted)
    return made


def launch(x, y, a=None, N=64, scale=0.5, grid=(2,), x_n=1, y_n=1, turned=False, warps=4, **constants):
    constants = {"BN": 32, "BK": 16} | constants
    constants = dict(reversed(constants.items())) if turned else constants
    launcher.launch(_scaled, grid, x, x_n, y, y_n, a, N, scale, writes=[y], warps=warps, **constants)


def at(offset, dtype=torch.float32):
    """Memory that starts so many elements past a multiple of 64 bytes."""
    held = torch.zeros(256, dtype=dtype)
    return held[-held.data_ptr() // held.itemsize % (64 // held.itemsize) + offset :]


FLOAT, HALF = at(0), at(0, torch.float16)
CALLS = {
    "plain": {},
    "another address": {"x": at(0).clone()},
    "x at an odd address": {"x": at(1)},
    "y at an odd address": {"y": at(3)},
    "another dtype": {"x": HALF},
    "a parameter": {"x": torch.nn.Parameter(FLOAT)},
    "with what was None": {"a": FLOAT},
    "a size of 1": {"N": 1},
    "an odd size": {"N": 63},
    "another odd size": {"N": 61},
    "past 32 bits": {"N": 2**31},
    "past 32 bits, odd": {"N": 2**31 + 1},
    "the last of 32 bits": {"N": 2**31 - 1},
    "a stride of 0": {"x_n": 0},
    "a stride of 16": {"x_n": 16},
    "a negative stride": {"x_n": -16},
    "another scale": {"scale": 2.25},
    "an integer scale": {"scale": 2},
    "a true scale": {"scale": True},
    "other constants": {"BN": 64, "BK": 8},
    "constants in another order": {"turned": True},
    "constants exchanged and in another order": {"BN": 16, "BK": 32, "turned": True},
    "more warps": {"warps": 8},
    "three axes": {"grid": (2, 3, 4)},
}


def test_what_reaches_the_driver_is_what_triton_gives_it(stub, monkeypatch, triton_launches):
    """Programs, threads, shared memory, stream, function and every parameter, over calls that differ in one thing."""
    calls = {name: functools.partial(launch, **{"x": FLOAT, "y": FLOAT, **call}) for name, call in CALLS.items()}
    compiled, wanted = [], []
    with monkeypatch.context() as patch:
        by_triton = cuda_triton._by_triton
        patch.setattr(cuda_triton, "_usual", lambda jit: False)
        patch.setattr(cuda_triton, "_by_triton", lambda *given: compiled.append(by_triton(*given)))
        for call in calls.values():
            call()
            wanted.append(stub.launch(compiled[-1], call))
    assert len({function for *_, function, _ in wanted}) >= 14
    for turn in range(3):
        triton_launches.clear()
        for (name, call), kernel, one in zip(calls.items(), compiled[::2], wanted, strict=True):
            assert stub.launch(kernel, call) == one, (turn, name)
        # What Triton compiles alike it launches once; but a Parameter, and constants in another order, are not seen to
        # be alike.
        assert len(triton_launches) == (0 if turn else len({kernel.hash for kernel in compiled}) + 2)


def test_every_kernel_of_an_op_is_launched_as_by_triton(stub, monkeypatch, triton_launches):
    """Real kernels, forward and backward, of many arguments; by Triton once, then never."""
    x, w, t = torch.randn(20, 24).requires_grad_(), torch.randn(24, 24).requires_grad_(), torch.zeros(20, dtype=int)
    run, launches = cuda_triton.run, []
    monkeypatch.setattr(cuda_triton, "run", lambda *given: (launches.append(given), run(*given)))

    def step():
        lab.linear(x, w, activation="relu").backward(torch.ones(20, 24))
        lab.cross_entropy(x, t).backward()

    step()
    assert 1 < len(triton_launches) <= len(launches)
    triton_launches.clear()
    launches.clear()
    step()
    assert not triton_launches
    assert max(len(args) for _, _, args, *_ in launches) >= 23
    for given in launches:
        compiled = cuda_triton._by_triton(*given)
        wanted = stub.launch(compiled, lambda given=given: cuda_triton._by_triton(*given))
        assert stub.launch(compiled, lambda given=given: run(*given)) == wanted, given[0].fn.__name__


def test_the_stream_is_the_current_one_of_each_launch(stub):
    for stream in (7, 9, 0):
        stub.stream = stream
        launch(FLOAT, FLOAT)
        assert (stub.last()[3] or 0) == stream
    stub.stream = 7


def test_the_device_of_the_tensors_is_made_current_where_it_is_not(stub, monkeypatch):
    entered = []

    @contextlib.contextmanager
    def current(device):
        entered.append(device)
        before, stub.device = stub.device, device
        yield
        stub.device = before

    monkeypatch.setattr(torch.cuda, "device", current)
    launch(FLOAT, FLOAT)
    assert not entered
    stub.device = 3
    try:
        for _ in range(3):
            launch(FLOAT, FLOAT)
        assert stub.device == 3
    finally:
        stub.device = -1
    assert entered == [-1] * 3


def test_a_tensor_of_another_device_is_left_to_triton_each_time(stub, triton_launches):
    device = -1

    class Somewhere(torch.Tensor):
        def get_device(self):
            return device

    x = FLOAT.clone().as_subclass(Somewhere)
    for _ in range(3):
        launch(x, FLOAT)
        launch(x[1:], FLOAT)
    assert len(triton_launches) == 2
    device = 1
    for _ in range(3):
        launch(x, FLOAT)
        launch(x[1:], FLOAT)
    assert len(triton_launches) == 8


@pytest.mark.parametrize("where", ["launch_enter_hook", "launch_exit_hook", "function", "pre_run", "debug", "setting"])
def test_who_listens_to_triton_hears_of_every_launch(stub, triton_launches, monkeypatch, where):
    heard = []

    def hook(*args, **options):
        heard.append(args)

    launch(FLOAT, FLOAT)
    launch(FLOAT, FLOAT)
    triton_launches.clear()
    with contextlib.ExitStack() as left:
        if where.startswith("launch"):
            chain = getattr(knobs.runtime, where)
            chain.add(hook)
            left.callback(chain.remove, hook)
        elif where == "function":
            monkeypatch.setattr(knobs.runtime, "launch_enter_hook", hook)
        elif where == "pre_run":
            _scaled.add_pre_run_hook(hook)
            left.callback(_scaled.pre_run_hooks.clear)
        elif where == "debug":
            monkeypatch.setattr(knobs.runtime, "debug", True)
        else:
            left.enter_context(knobs.compilation.scope())
            knobs.compilation.disable_line_info = True
        launch(FLOAT, FLOAT)
        launch(FLOAT, FLOAT)
    monkeypatch.undo()
    assert len(triton_launches) == 2
    assert len(heard) == (0 if where in ("debug", "setting") else 2)


def test_nothing_is_left_to_triton_once_nobody_listens(stub, triton_launches):
    for _ in range(2):
        launch(FLOAT, FLOAT)
    assert not triton_launches


def test_what_is_forgotten_is_launched_by_triton_again(stub, triton_launches):
    launch(FLOAT, FLOAT)
    triton_launches.clear()
    launcher.forget()
    launch(FLOAT, FLOAT)
    launch(FLOAT, FLOAT)
    assert triton_launches == ["_scaled"]


def test_launches_past_the_most_make_room(stub, monkeypatch, triton_launches):
    monkeypatch.setattr(cuda_triton, "MOST", 4)
    launcher.forget()
    for N in range(17, 32):
        launch(FLOAT, FLOAT, N=N)
    assert len(cuda_triton._launches) <= 4
    assert triton_launches == ["_scaled"]


def test_too_many_programs_and_none(stub):
    with pytest.raises(ValueError, match=r"^_scaled: grid is \(1, 65536\), wanted at most 65535 programs past"):
        launch(FLOAT, FLOAT, grid=(1, 65536))
    before = stub.launched
    launch(FLOAT, FLOAT, grid=(3, 0))
    assert stub.launched == before


def test_a_launcher_that_is_not_known_is_triton_s_own(stub, monkeypatch, triton_launches):
    """Whatever moves in a later Triton, launches are right, and as slow as Triton's."""

    class Moved:
        def __init__(self, kernel):
            self.src, self.run = kernel.src, object()

    for unknown in (lambda k, source: None, lambda k, source: private_triton.c_launcher(Moved(k), source)):
        launcher.forget()
        triton_launches.clear()
        monkeypatch.setattr(cuda_triton, "c_launcher", unknown)
        for _ in range(3):
            launch(FLOAT, FLOAT)
        assert triton_launches == ["_scaled"] * 3
    monkeypatch.undo()
    launcher.forget()


def test_descriptors_made_by_the_kernel_get_scratch_memory(stub, triton_launches, monkeypatch):
    """Of torch's, as much as all programs need, whoever launches."""
    x, y = torch.zeros(128, 64), torch.zeros(128, 64)

    def double(programs=4):
        launcher.launch(_by_descriptor, [1, programs], x, y, 128, 64, BM=32, BN=64, writes=[y])

    double()
    (found,) = (one for one in cuda_triton._launchers.values() if one.kernel.src.fn is _by_descriptor)
    assert found.scratch >= 2 * 128
    asked, make = [], torch.Tensor.new_empty

    def noted(t, size, **options):
        asked.append(make(t, size, **options))
        return asked[-1]

    monkeypatch.setattr(torch.Tensor, "new_empty", noted)
    triton_launches.clear()
    for usual in (True, False):
        monkeypatch.setattr(cuda_triton, "_usual", lambda jit, usual=usual: usual)
        for programs in (4, 3):
            *_, (*_, scratch, profiler) = stub.launch(found.kernel, functools.partial(double, programs))
            assert (asked[-1].numel(), asked[-1].data_ptr(), 0) == (found.scratch * programs, scratch, profiler)
        assert len(triton_launches) == (0 if usual else 2)


def test_a_descriptor_made_by_the_host_is_left_to_triton(stub, monkeypatch):
    from triton.tools.tensor_descriptor import TensorDescriptor

    launched = []
    monkeypatch.setattr(cuda_triton, "_by_triton", lambda *launch: launched.append(launch))
    described = TensorDescriptor.from_tensor(torch.zeros(64, 64), [32, 32])
    for _ in range(2):
        launch(described, FLOAT)
    assert len(launched) == 2


def test_a_sanitized_launch_leaves_no_setting_behind():
    """A setting in Python, whatever it says, would keep all later launches on Triton's own path."""
    before = dict(vars(knobs.compilation))
    with gradlab.sanitize():
        assert knobs.compilation.instrumentation_mode
    assert vars(knobs.compilation) == before
