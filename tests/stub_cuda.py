"""Triton's own CUDA driver over a libcuda that runs nothing: launches on a machine without a GPU, up to the driver.

Kernels are compiled for sm_90 and handed to Triton's launcher in C, which hands them to `stub_cuda.c`. A CPU's tensors
stand for a GPU's: their device, -1, is the current one.
"""

import contextlib
import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import driver

from gradlab.kernels.runtime import cuda_triton, launch_triton

SOURCE = Path(__file__).with_name("stub_cuda.c")
SIZES = {"i1": 1, "u1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "u64": 8, "fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}


def usable():
    """Whether nothing real is in the way, and there is a compiler."""
    return not torch.cuda.is_available() and shutil.which("gcc") is not None


class _Config(ctypes.Structure):
    _fields_ = [("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint)]
    _fields_ += [("stream", ctypes.c_void_p), ("attributes", ctypes.c_void_p), ("attribute_count", ctypes.c_uint)]


class StubDriver(CudaDriver):
    """Triton's driver, with a current device and a current stream that are set here."""

    def __init__(self, folder):
        library = Path(folder, "libcuda.so.1")
        options = ["-shared", "-fPIC", "-O2", "-Wl,-soname,libcuda.so.1"]
        subprocess.run(["gcc", *options, "-o", library, SOURCE], check=True)
        # By its name in the library, Triton's modules and dlopen find this one.
        self.library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        super().__init__()
        self.device, self.stream = -1, 7
        self.get_current_device = lambda: self.device
        self.get_current_stream = lambda device: self.stream
        self.get_device_capability = lambda device: (9, 0)

    @property
    def launched(self):
        """How many launches there were."""
        return ctypes.c_uint64.in_dll(self.library, "launched").value

    def launch(self, compiled, call):
        """What one call of `call`, which launches this kernel, gives the driver: programs, threads, shared memory,
        stream, function, and every parameter, scratch memory and profiler's memory at the end."""
        kinds = [*(kind for kind in compiled.src.signature.values() if kind != "constexpr"), "*i8", "*i8"]
        sizes = [8 if kind.startswith("*") else SIZES[kind] for kind in kinds]
        (ctypes.c_uint * 64).in_dll(self.library, "sizes")[: len(sizes)] = sizes
        ctypes.c_uint.in_dll(self.library, "parameters").value = len(sizes)
        before = self.launched
        call()
        assert self.launched == before + 1
        values = (ctypes.c_uint64 * 64).in_dll(self.library, "values")[: len(sizes)]
        return *self.last(), values

    def last(self):
        """The last launch: programs, threads, shared memory, stream, function."""
        config = _Config.in_dll(self.library, "last")
        function = ctypes.c_void_p.in_dll(self.library, "last_function").value
        return [*config.grid], [*config.block], config.shared, config.stream, function


def _run(jit, grid, args, writes, *rest):
    cuda_triton.run(jit, grid, args, writes[0], *rest)


@contextlib.contextmanager
def libcuda_in():
    """A folder that Triton links its launchers to, as long as it compiles some."""
    with tempfile.TemporaryDirectory(prefix="stub_cuda") as folder, triton.knobs.nvidia.scope():
        triton.knobs.nvidia.libcuda_path = folder
        yield folder


@contextlib.contextmanager
def active():
    """Within it Triton launches by a `StubDriver`, and the lab's launches on a CPU's tensors are launches on CUDA."""
    run, before = launch_triton._run, driver._active
    launch_triton._run = _run
    try:
        with libcuda_in() as folder, launch_triton.gpu_sizes():
            stub = StubDriver(folder)
            driver.set_active(stub)
            launch_triton.forget()
            yield stub
    finally:
        launch_triton._run = run
        launch_triton.forget()
        driver._active = before
