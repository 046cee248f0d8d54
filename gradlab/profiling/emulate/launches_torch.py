"""Triton launches on tensors of a CPU, executed as a GPU would: of this package's kernels and of anybody's."""

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from gradlab.kernels.private.private_triton import untuned
from gradlab.kernels.runtime import launch_triton
from gradlab.kernels.runtime.forking import Lock
from gradlab.profiling.emulate.compiled_triton import extent, prepare
from gradlab.profiling.emulate.launch import Launch
from gradlab.profiling.machine_code.own_torch import by_name
from gradlab.profiling.machine_code.targets import Target
from gradlab.profiling.ptx.global_memory import Extent

_real = JITFunction.run


def _put_back() -> None:
    """In a child forked while another thread emulated: launches are Triton's again."""
    JITFunction.run = _real


_lock = Lock(_put_back)


@contextmanager
def emulated(where: Target, run: Callable[[Launch], None]) -> Iterator[None]:
    """Within it `run` gets every launch of a Triton kernel on tensors of a CPU, compiled for a GPU."""

    def launch(jit: JITFunction, grid: Any, args: tuple[Any, ...], options: dict[str, Any], holds: Any) -> None:
        x, y, z = (*(int(n) for n in grid), 1, 1)[:3]
        if x * y * z == 0:
            return
        made = prepare(jit, args, options, where)
        behind = [extent(t, f"a tensor {str(t.dtype)[6:]}{list(t.shape)}") for t in holds if _plain(t)]
        tables = any(isinstance(a, torch.Tensor) and a.dtype in (torch.int64, torch.uint64) for a in args)
        made = dataclasses.replace(made, extents=(*made.extents, *behind), more=_alive if tables else None)
        run(Launch(_name(jit), (x, y, z), made, jit.fn.__code__.co_filename))

    def own(noted: launch_triton.Launch) -> None:
        options = {**noted.constants, "num_warps": noted.warps, "num_stages": noted.stages, "enable_fp_fusion": True}
        launch(noted.jit, noted.grid, noted.args, options, noted.holds)

    def anybodys(jit: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        for hook in jit.pre_run_hooks:
            hook(*args, **options)
        if warmup:
            return
        launch(jit, grid(by_name(jit, args, options)) if callable(grid) else grid, args, options, ())

    # Of what torch.compile made too, the kernels that a user wrote are launched by Triton.
    with _lock, untuned(), torch.compiler.set_stance("force_eager"):
        JITFunction.run = anybodys
        try:
            with launch_triton.taking(own, where.name):
                yield
        finally:
            _put_back()


def _name(jit: JITFunction) -> str:
    return jit.fn.__name__.strip("_").removesuffix("_kernel")


def _alive() -> Iterator[Extent]:
    """Every tensor that there is: a kernel may have its address from a table."""
    for found in gc.get_objects():
        # Not isinstance, which asks an object for its class, and some warn of that.
        if type(found) in (torch.Tensor, torch.nn.Parameter) and _plain(found):
            # One that a transform of torch.func has wrapped has no memory, and says so by an error.
            with contextlib.suppress(RuntimeError):
                yield extent(found, f"a tensor {str(found.dtype)[6:]}{list(found.shape)}")


def _plain(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.numel() > 0
