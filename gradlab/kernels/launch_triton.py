"""The one gate for Triton launches: a tensor on CUDA compiles the kernel, a tensor on a CPU interprets the same source.

Triton decides between its compiler and its interpreter when a kernel is decorated, from an environment variable that
holds for the whole process. Here the tensor decides, at each launch. A kernel is therefore always decorated as
compiled; the interpreted twin is made from the same Python function on first use, and Triton's language module is
switched to its NumPy meaning only while that twin runs (under a lock, and put back afterwards whatever happens).
"""

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch.utils.flop_counter import register_flop_formula
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

from gradlab.kernels import memory_triton as memory
from gradlab.kernels import ranges
from gradlab.kernels.forking import Lock

_switched = (tl, tl.core, tl.math, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base)

# Most elements of one tile in the interpreter (Triton refuses larger tensors).
INTERPRETED_TILE = 2**20
# Every kernel that was decorated so far.
KERNELS: list[JITFunction] = []


def kernel(fn: Callable) -> JITFunction:
    """Decorate a Triton kernel of this lab: compiled by `launch` on CUDA, interpreted by it on a CPU."""
    KERNELS.append(JITFunction(fn))
    return KERNELS[-1]


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch as a compiler sees it: the kernel, its arguments and its options."""

    jit: JITFunction
    grid: tuple[int, ...]
    args: tuple
    warps: int
    stages: int
    constants: dict[str, Any]


_recorded: list[Launch] | None = None
# The language's modules and classes with their attributes, while it is found out which of them interpretation replaces.
_before: list[tuple[Any, dict[str, Any]]] | None = None


def _put_back() -> None:
    """In a child forked while another thread interpreted or recorded: the language has its compiled meaning again."""
    global _recorded, _before
    _recorded = None
    if _before is not None:
        for place, members in _before:
            for name, now in list(vars(place).items()):
                if members.get(name, _absent) is not now:
                    _set(place, name, members.get(name, _absent))
        _before = None
    elif _meanings.cache_info().currsize:
        for place, name, member, _ in _meanings():
            _set(place, name, member)


_lock = Lock(_put_back)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Within it, launches choose compiled sizes and are noted, not run: what machine code is read from, GPU or none."""
    global _recorded
    with _lock:
        _recorded = []
        try:
            yield _recorded
        finally:
            _recorded = None


def interpreted(device: torch.device) -> bool:
    """Whether kernels on this device run in the interpreter, where programs are dear and elements cheap."""
    return device.type != "cuda" and _recorded is None


def launch(jit: JITFunction, grid: Sequence[int], *args: Any, writes: Sequence[torch.Tensor],
           warps: int = 4, stages: int = 3, holds: Sequence[torch.Tensor] = (),
           **constants: Any) -> None:  # fmt: skip
    """Run `jit` over `grid` on the device of the tensors it writes.

    Args:
        grid: programs along up to three axes; with a zero axis nothing is launched.
        args: tensors, integers and floats in the kernel's order; a float reaches a compiled kernel as float32
            unless the kernel annotates it wider.
        writes: every tensor that the kernel stores to.
        warps, stages: launch options of the compiled kernel; the interpreter has neither.
        holds: tensors that the kernel reaches through addresses, which only its named range has to know.
        constants: the kernel's `tl.constexpr` parameters.
    """
    if 0 in grid:
        return
    if _recorded is not None:
        _recorded.append(Launch(jit, tuple(grid), args, warps, stages, constants))
        return
    if ranges.opener is None:
        _run(jit, grid, args, writes, warps, stages, constants)
        return
    tensors = list(holds) or [a for a in args if isinstance(a, torch.Tensor)]
    # Inside a compiled program no rule is there to say which way this is; autograd's engine knows.
    back = torch._C._current_autograd_node() is not None
    with ranges.opener.kernel("torch", jit.fn, tensors, back):
        _run(jit, grid, args, writes, warps, stages, constants)


def _run(jit: JITFunction, grid: Sequence[int], args: tuple, writes: Sequence[torch.Tensor], warps: int, stages: int,
         constants: dict[str, Any]) -> None:  # fmt: skip
    device = writes[0].device
    if interpreted(device):
        _interpret(jit, tuple(grid), args, writes, constants)
        return
    if max(grid[1:], default=1) > 65535:
        raise ValueError(f"{jit.fn.__name__}: grid is {tuple(grid)}, wanted at most 65535 programs past the first axis")
    with torch.cuda.device(device):
        # FP fusion is named because its default changes between Triton releases, and with it the last bit.
        jit[tuple(grid)](*args, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=True)


def _interpret(jit: JITFunction, grid: tuple[int, ...], args: tuple, writes: Sequence[torch.Tensor],
               constants: dict[str, Any]) -> None:  # fmt: skip
    with staged([a for a in args if isinstance(a, torch.Tensor)], writes) as stage:
        args = tuple(stage(a) if isinstance(a, torch.Tensor) else a for a in args)
        values = inspect.getcallargs(jit.fn, *args, **constants)
        values = {k: v if k in constants else interpreter._implicit_cvt(v) for k, v in values.items()}
        grid = grid + (1,) * (3 - len(grid))
        fn = _twin(jit)
        with _lock, _numpy_language(), np.errstate(all="ignore"):
            interpreter.interpreter_builder.set_grid_dim(*grid)
            for index in np.ndindex(*grid):
                interpreter.interpreter_builder.set_grid_idx(*index)
                fn(**values)


@contextmanager
def staged(tensors: Sequence[torch.Tensor], writes: Sequence[torch.Tensor]) -> Iterator[Callable]:
    """Hand an interpreted kernel float32 in place of bfloat16, and round to nearest on the way back.

    Triton's interpreter has no bfloat16 arithmetic and truncates when it stores one. Every bfloat16 value is a
    float32, so a kernel that accumulates in float32 sees the same numbers; the strides, zeros included, stay.
    """
    copies = {_place(t): _widen(t) for t in tensors if t.dtype == torch.bfloat16}
    yield lambda t: copies.get(_place(t), t)
    for t in writes:
        if _place(t) in copies:
            t.copy_(copies[_place(t)])


def _place(t: torch.Tensor) -> tuple:
    return t.data_ptr(), t.dtype, t.shape, t.stride()


def _widen(t: torch.Tensor) -> torch.Tensor:
    """A float32 copy with the same shape and strides, which `Tensor.float` would not keep for an expanded tensor."""
    extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    return t.detach().as_strided((extent,), (1,)).float().as_strided(t.shape, t.stride(), 0)


@functools.cache
def _twin(jit: JITFunction) -> Callable:
    """The kernel's Python function, rewritten for the interpreter, in a namespace of its own."""
    names = dict(jit.fn.__globals__)
    fn = types.FunctionType(jit.fn.__code__, names, jit.fn.__name__, jit.fn.__defaults__, jit.fn.__closure__)
    called = {k: names[k] for k in fn.__code__.co_names if isinstance(names.get(k), JITFunction)}
    names.update({k: _twin(v) for k, v in called.items()})
    return interpreter.FunctionRewriter(fn).rewrite_ast()


@contextmanager
def _numpy_language() -> Iterator[None]:
    """Give `triton.language` its NumPy meaning, and put back every attribute afterwards."""
    try:
        for place, name, _, numpy_member in _meanings():
            setattr(place, name, numpy_member)
        yield
    finally:
        for place, name, member, _ in _meanings():
            _set(place, name, member)


_absent = object()


def _set(place: Any, name: str, member: Any) -> None:
    """The attribute as it was, which may be: not there."""
    if member is not _absent:
        setattr(place, name, member)
    elif name in vars(place):
        delattr(place, name)


@functools.cache
def _meanings() -> list[tuple[Any, str, Any, Any]]:
    """Every attribute that interpretation replaces: where, name, compiled meaning, NumPy meaning.

    Found once, by letting Triton switch its modules and noting what moved: looking for it costs milliseconds.
    """
    global _before
    before = _before = [(place, dict(vars(place))) for place in _switched]
    # Triton asks a kernel's globals which modules to switch; a kernel that calls tl.sum needs both.
    interpreter._patch_lang(types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    # tl.sum, tl.max, ... are kernels themselves: what runs is their Python function.
    for name, member in list(vars(tl).items()):
        if isinstance(member, JITFunction):
            setattr(tl, name, member.fn)
    # The compiler checks integers for overflow in debug builds only; in the interpreter it doubles the work.
    options = interpreter.interpreter_builder.options
    interpreter.interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)
    tl.tensor.__index__ = lambda self: int(self.handle.data.reshape(()))
    moved = [
        (place, name, members.get(name, _absent), now)
        for place, members in before
        for name, now in vars(place).items()
        if members.get(name, _absent) is not now
    ]
    for place, name, member, _ in moved:
        _set(place, name, member)
    _before = None
    return moved


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """The Triton dtype of a tensor's elements as a kernel will see them: interpreted bfloat16 is staged as float32."""
    return getattr(tl, str(dtype).removeprefix("torch."))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums of `dtype` are carried in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def capturing() -> bool:
    """Whether the current stream is captured into a CUDA graph; a CPU build of torch has no answer to that."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def refuse_capture(op: str, device: torch.device) -> None:
    """Raise a ValueError while the current stream is captured into a CUDA graph, for an op that reads the host's memory.

    Each replay would copy from the same place on the host, which belongs to something else by then: the kernel would
    take any bytes for addresses.
    """
    if device.type == "cuda" and capturing():
        raise ValueError(
            f"{op}: stream is captured into a CUDA graph, wanted one that is not: addresses and scalars come from the host"
        )


def on_device(values: Sequence, dtype: torch.dtype, device: torch.device, op: str) -> torch.Tensor:
    """A small tensor of host values for `op`; on CUDA it travels from pinned memory, so that nothing waits for it.

    Raises:
        ValueError: the stream is captured into a CUDA graph.
    """
    refuse_capture(op, device)
    host = torch.tensor(values, dtype=dtype)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def block(size: int, most: int, least: int = 16) -> int:
    """The power of two that covers `size`, held between `least` and `most`."""
    return max(least, min(most, triton.next_power_of_2(max(size, 1))))


def _no_product(*args: Any, **shapes: Any) -> int:
    return 0


def op(name: str, fake: Callable, mutates: Sequence[str] = (), from_host: bool = False,
       flops: Callable[..., int] = _no_product) -> Callable[[Callable], Callable]:  # fmt: skip
    """Register a launching function as the custom op `gradlab::name`.

    Crossing the dispatcher costs tens of microseconds a call, so an eager call on plain tensors goes straight to
    the function; a compiler, a tracing mode or a wrapped tensor gets the registered op. Lazy tensors are made real
    here, in front of both.

    Args:
        fake: the same signature on tensors without data: gives the results' shapes, strides and dtypes.
        mutates: names of the arguments that are written.
        from_host: it calls `on_device`, so inductor leaves it out of the CUDA graphs that it makes.
        flops: the FLOPs of its products, for `torch.utils.flop_counter.FlopCounterMode`, which counts nothing else of
            torch's own layers either; of the op's arguments with a shape in place of each tensor, and `out_shape`.
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

        @functools.wraps(fn)
        def call(*args: Any) -> Any:
            if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
                return overload(*args)
            found = memory.strange(args)
            if not found:
                return fn(*args)
            return lazily_registered(*args) if memory.wrapped(found) else lazily(*args)

        return call

    return register
