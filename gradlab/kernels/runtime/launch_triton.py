"""The launcher of Triton kernels: on CUDA through Triton, on a CPU through the compiler in `kernels/cpu`.

Triton has one active back end in a process. Here the tensors' device decides at each launch, so that tensors on a CPU
beside a GPU are computed on the CPU. `GRADLAB_CPU=interpret` runs Triton's interpreter there instead: slow, and a
cross-check of the compiler.
"""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import triton.language as tl
from torch.utils.flop_counter import register_flop_formula
from triton.runtime.jit import JITFunction

from gradlab.kernels.cpu import sanitize_torch
from gradlab.kernels.private.private_torch import autograd_node, dispatch_modes
from gradlab.kernels.private.private_triton import forget as forget_compiled
from gradlab.kernels.runtime import compiled_triton, cuda_triton, plans_triton, ranges, sharded_triton, source_triton
from gradlab.kernels.runtime import memory_triton as memory
from gradlab.kernels.runtime.forking import Lock

# Every decorated kernel, and the ids of those that are launched on CPUs only.
KERNELS: list[JITFunction] = []
OF_CPUS: set[int] = set()


def kernel(fn: Callable) -> JITFunction:
    """Decorate a Triton kernel of this lab, which `launch` runs on CUDA and on a CPU."""
    KERNELS.append(source_triton.made(fn))
    return KERNELS[-1]


def kernel_of_cpus(fn: Callable) -> JITFunction:
    """Decorate a kernel that is launched on CPUs only, where another kernel does the same on GPUs."""
    jit = kernel(fn)
    OF_CPUS.add(id(jit))
    return jit


def kernel_of_any(*names: str) -> Callable[[Callable], JITFunction]:
    """Decorate a kernel whose constants of these names, integers, are arguments on a CPU: compiled once for all values.

    On a GPU they fold into each element's address arithmetic; a CPU's loops hoist that anyway.
    """

    def decorated(fn: Callable) -> JITFunction:
        jit = kernel(fn)
        compiled_triton.ANY[id(jit)] = names
        return jit

    return decorated


def forget() -> None:
    """Drop every compiled kernel from memory; the cache on disk stays."""
    for jit in KERNELS:
        forget_compiled(jit)
    compiled_triton.forget()
    cuda_triton.forget()
    plans_triton.forget()


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch: the kernel, its grid, its arguments and its options, and tensors that it reaches by addresses."""

    jit: JITFunction
    grid: tuple[int, ...]
    args: tuple
    warps: int
    stages: int
    constants: dict[str, Any]
    holds: tuple[torch.Tensor, ...] = ()


# The architecture of "cuda" where no GPU is there to be asked.
USUAL = "sm_90"
# What takes launches in place of a device, and whose tiles they have then.
_taker: Callable[[Launch], None] | None = None
_taken_for = USUAL


def _stop_taking() -> None:
    global _taker
    _taker = None


_lock = Lock(_stop_taking)


@contextmanager
def recording(device: str = "cuda") -> Iterator[list[Launch]]:
    """A context in which launches are recorded, not run, with a GPU's tiles or a CPU's; for reading machine code.

    Args:
        device: whose tiles launches take: "cpu", an architecture as "sm_80", or "cuda", a usual one.
    """
    launches: list[Launch] = []
    with taking(launches.append, device):
        yield launches


@contextmanager
def taking(taker: Callable[[Launch], None], device: str = "cuda") -> Iterator[None]:
    """A context in which `taker` gets each launch, which does not run else, with the tiles of that device."""
    global _taker, _taken_for
    with _lock:
        _taker, _taken_for = taker, USUAL if device == "cuda" else device
        try:
            yield
        finally:
            _taker = None


@contextmanager
def gpu_sizes(arch: str = USUAL) -> Iterator[None]:
    """A context in which launches on a CPU use a GPU's tiles and splits, so that tests cover what a GPU launches."""
    global _gpu_sizes
    before, _gpu_sizes = _gpu_sizes, arch
    try:
        yield
    finally:
        _gpu_sizes = before


@contextmanager
def interpreting() -> Iterator[None]:
    """A context in which kernels on a CPU run in Triton's interpreter."""
    global _interpreting
    before, _interpreting = _interpreting, True
    try:
        yield
    finally:
        _interpreting = before


@contextmanager
def noting(note: Callable[[JITFunction], None]) -> Iterator[None]:
    """A context in which `note` is called with each kernel before its launch."""
    global _note
    before, _note = _note, note
    try:
        yield
    finally:
        _note = before


def sized_for(device: torch.device) -> str:
    """Whose tiles launches on this device take: "cuda" or "cpu"."""
    return "cpu" if places(device)[0] == "cpu" else "cuda"


def places(device: torch.device) -> tuple[str, ...]:
    """Where launches on this device run, by the names of the table of tiles, the most specific first.

    ("cpu",); of a GPU its name, its architecture and "cuda"; of one that launches are noted for, only its architecture.
    """
    named = _taken_for if _taker is not None else _gpu_sizes
    if _taker is None and device.type == "cuda":
        return _gpu(device.index)
    return _PLACES["cpu" if named is None else named]


class _Places(dict[str, tuple[str, ...]]):
    def __missing__(self, arch: str) -> tuple[str, ...]:
        self[arch] = (arch, "cuda")
        return self[arch]


_PLACES = _Places(cpu=("cpu",))


@functools.cache
def _gpu(index: int | None) -> tuple[str, ...]:
    # AMD's GPUs have capabilities too, which are no architectures of CUDA.
    arch = () if torch.version.hip else ("sm_{}{}".format(*torch.cuda.get_device_capability(index)),)
    return torch.cuda.get_device_name(index), *arch, "cuda"


def interpreted(device: torch.device) -> bool:
    """Whether kernels on this device run in Triton's interpreter, whose timings mean nothing."""
    return device.type != "cuda" and _interpreting and _taker is None


def holding() -> bool:
    """Whether somebody asks which tensors a launch reaches through addresses."""
    return ranges.opener is not None or sanitize_torch.active is not None or _taker is not None


def interpreting_now() -> bool:
    """Whether launches on a CPU run in Triton's interpreter."""
    return _interpreting


def bare() -> bool:
    """Whether a launch on a CPU is plain: compiled, with a CPU's tiles, not noted, sanitized or in a named range."""
    usual = _taker is None and _note is None and ranges.opener is None and sanitize_torch.active is None
    return usual and not (_interpreting or _gpu_sizes)


def _from_environment() -> bool:
    chosen = os.environ.get("GRADLAB_CPU", "compile")
    if chosen not in ("compile", "interpret"):
        raise ValueError(f"gradlab: GRADLAB_CPU is {chosen!r}, wanted compile or interpret")
    return chosen == "interpret"


# The architecture whose sizes launches on a CPU have.
_gpu_sizes: str | None = None
_note: Callable[[JITFunction], None] | None = None
_interpreting = _from_environment()


def launch(
    jit: JITFunction,
    grid: Sequence[int],
    *args: Any,
    writes: Sequence[torch.Tensor],
    warps: int = 4,
    stages: int = 3,
    holds: Sequence[torch.Tensor] = (),
    **constants: Any,
) -> None:
    """Run `jit` over `grid` on the device of the tensors it writes.

    Args:
        grid: programs along up to three axes; with a zero axis nothing is launched.
        args: tensors, integers and floats in the kernel's order; a float reaches a compiled kernel as float32
            unless the kernel annotates it wider.
        writes: every tensor that the kernel stores to.
        warps, stages: launch options on CUDA; a CPU has neither.
        holds: tensors that the kernel reaches through addresses, where `holding()`.
        constants: the kernel's `tl.constexpr` parameters.
    """
    if 0 in grid:
        return
    if _taker is not None:
        _taker(Launch(jit, tuple(grid), args, warps, stages, constants, tuple(holds)))
        return
    if plans_triton.noted(jit, grid, args, constants):
        return
    if sanitize_torch.active is not None:
        sanitize_torch.active.holds = holds
    if ranges.opener is None:
        _run(jit, grid, args, writes, warps, stages, constants)
        return
    tensors = list(holds) or [a for a in args if isinstance(a, torch.Tensor)]
    # Inside a compiled program no rule is there to say which way this is; autograd's engine knows.
    back = autograd_node() is not None
    with ranges.opener.kernel("torch", jit.fn, tensors, back):
        _run(jit, grid, args, writes, warps, stages, constants)


def _run(
    jit: JITFunction,
    grid: Sequence[int],
    args: tuple,
    writes: Sequence[torch.Tensor],
    warps: int,
    stages: int,
    constants: dict[str, Any],
) -> None:
    if _note is not None:
        _note(jit)
    if writes[0].is_cuda:
        cuda_triton.run(jit, grid, args, writes[0], warps, stages, constants)
    elif _interpreting:
        from gradlab.kernels.runtime.interpret_triton import interpret

        interpret(jit, tuple(grid), args, writes, constants)
    else:
        compiled_triton.run(jit, grid, args, constants)


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """The Triton dtype of a tensor's elements."""
    return getattr(tl, str(dtype).removeprefix("torch."))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums of `dtype` are carried in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def capturing() -> bool:
    """Whether the current stream is captured into a CUDA graph; a CPU build of torch has no answer to that."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def refuse_capture(op: str, device: torch.device) -> None:
    """Raise a ValueError while a CUDA graph is captured on the current stream, for an op that reads the host's memory.

    Each replay would copy from the same host memory, which is reused by then: the kernel would read arbitrary bytes as
    addresses.
    """
    if device.type == "cuda" and capturing():
        raise ValueError(
            f"{op}: stream is captured into a CUDA graph, wanted one that is not: "
            "addresses and scalars come from the host"
        )


def on_device(values: Sequence | torch.Tensor, dtype: torch.dtype, device: torch.device, op: str) -> torch.Tensor:
    """A small tensor of host values for `op`; on CUDA copied from pinned memory, without synchronisation.

    Raises:
        ValueError: the stream is captured into a CUDA graph.
    """
    refuse_capture(op, device)
    host = torch.as_tensor(values, dtype=dtype)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def block(size: int, most: int, least: int = 16) -> int:
    """The power of two that covers `size`, held between `least` and `most`."""
    return max(least, min(most, 1 << (size - 1).bit_length() if size > 1 else 1))


def _no_product(*args: Any, **shapes: Any) -> int:
    return 0


def op(
    name: str,
    fake: Callable,
    mutates: Sequence[str] = (),
    from_host: bool = False,
    flops: Callable[..., int] = _no_product,
    sharding: sharded_triton.Text = None,
) -> Callable[[Callable], Callable]:
    """Register a launching function as the custom op `gradlab::name`.

    The dispatcher costs tens of microseconds a call, so an eager call on plain tensors goes directly to the function,
    on a CPU by its plan; compilers, tracing modes and wrapped tensors get the registered op. Lazy tensors are
    materialised before either.

    Args:
        fake: a function of the same signature that returns empty results, for shapes, strides and dtypes.
        mutates: names of the arguments that are written.
        from_host: whether it calls `on_device`; inductor then keeps it out of CUDA graphs.
        flops: the FLOPs of its products, for `torch.utils.flop_counter.FlopCounterMode`, which counts nothing else of
            torch's own layers either; of the op's arguments with a shape in place of each tensor, and `out_shape`.
        sharding: how it is split over devices that hold parts of its tensors (DTensors): a text as
            `runtime/sharding.py` has it that names every argument that may be a tensor, or a function of the op's
            arguments that returns one; None refuses DTensors.
    """
    tags = (torch.Tag.cudagraph_unsafe,) if from_host else ()

    def register(fn: Callable) -> Callable:
        checked = memory.addressable(name, fn)
        registered = torch.library.custom_op(f"gradlab::{name}", checked, mutates_args=mutates, tags=tags)
        registered.register_fake(fake)
        register_flop_formula(getattr(torch.ops.gradlab, name))(flops)
        overload = getattr(torch.ops.gradlab, name).default
        names = list(inspect.signature(fn).parameters)
        written = [names.index(argument) for argument in mutates]
        lazily, lazily_registered = (memory.resolving(name, f, written) for f in (fn, overload))
        planned = plans_triton.Plans(fn)

        @functools.wraps(fn)
        def call(*args: Any) -> Any:
            if torch.compiler.is_compiling() or dispatch_modes():
                return fn(*args) if plans_triton.noting() else overload(*args)
            signature = memory.signature(args) if bare() else None
            if signature is not None:
                return planned(signature, args)
            found = memory.strange(args)
            if not found:
                return fn(*args)
            if memory.wrapped(found):
                sharded_triton.ready()
                return lazily_registered(*args)
            return lazily(*args)

        sharded_triton.declare(sharded_triton.Rule(name, call, fake, sharding, tuple(names), tuple(written)))
        return call

    return register
