"""The Triton kernels that anybody's function launches, found by running it where launches are noted and not run."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from triton.runtime.jit import JITFunction

from gradlab.kernels.runtime.forking import Lock
from gradlab.kernels.runtime.launch_triton import triton_dtype
from gradlab.profiling.machine_code.call_torch import call
from gradlab.profiling.machine_code.found import Found
from gradlab.profiling.machine_code.launches_torch import Source

# What Triton takes when a launch names neither.
WARPS, STAGES = 4, 3
_real = JITFunction.run


def _put_back() -> None:
    """In a child forked while another thread looked for kernels: launches run again."""
    JITFunction.run = _real


_lock = Lock(_put_back)


def find(fn: Callable[..., Any], args: tuple[Any, ...]) -> list[Found]:
    """Every kernel of `fn(*args)` and, where results have a gradient, of its backward, each once."""
    found: list[Found] = []
    with _noting(found, "forward"):
        results = fn(*args)
    wrt = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
    several = results if isinstance(results, tuple | list) else (results,)
    outputs = [r for r in several if isinstance(r, torch.Tensor) and r.requires_grad]
    if wrt and outputs:
        with _noting(found, "backward"):
            torch.autograd.grad(outputs, wrt, [torch.ones_like(r) for r in outputs], allow_unused=True)
    return found


@contextmanager
def _noting(found: list[Found], direction: str) -> Iterator[None]:
    """Within it launches of `kernel[grid](...)` are added to `found` and do not run."""

    def note(jit: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        warps, stages = options.pop("num_warps", WARPS), options.pop("num_stages", STAGES)
        given = by_name(jit, args, options)
        programs = grid(given) if callable(grid) else grid
        code = _source(jit, given)
        name = jit.fn.__name__.strip("_").removesuffix("_kernel")
        same = (jit, code.hash(), warps, stages)
        if any(same == (f.source.fn, f.source.hash(), f.warps, f.stages) for f in found):
            return
        place = jit.fn.__code__
        constants = {p.name: str(given[p.name]) for p in jit.params if p.is_constexpr}
        variant = 1 + sum(f.kernel == name for f in found)
        where = (place.co_filename, place.co_firstlineno)
        grid_of = tuple(int(n) for n in programs)
        called = call(code.signature, given, grid_of, ())
        found.append(Found(name, variant, direction, grid_of, warps, stages, code, *where, constants, called))

    with _lock:
        JITFunction.run = note
        try:
            yield
        finally:
            _put_back()


def by_name(jit: JITFunction, args: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
    """A launch's arguments by their names, as a function of the grid gets them, defaults among them."""
    defaults = {p.name: p.default for p in jit.params}
    named = {name: value for name, value in options.items() if name in defaults}
    return defaults | dict(zip(jit.arg_names, args, strict=False)) | named


def _source(jit: JITFunction, given: dict[str, Any]) -> Source:
    """A launch as the compiler takes it, its arguments specialised as Triton does."""
    signature, constants, attrs = {}, {}, {}
    for i, parameter in enumerate(jit.params):
        name, value = parameter.name, given[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name], constants[(i,)] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + triton_dtype(value.dtype).name.replace("uint", "u").replace("int", "i")
        elif isinstance(value, bool):
            signature[name] = "i1"
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        address = value.data_ptr() if isinstance(value, torch.Tensor) else value
        if not isinstance(value, float | bool) and address % 16 == 0:
            attrs[(i,)] = [["tt.divisibility", 16]]
    return Source(fn=jit, signature=signature, constexprs=constants, attrs=attrs)


def drawn(args: Sequence[Any], dtype: str) -> list[Any]:
    """Arguments that were drawn in float64, in another dtype; floats require a gradient."""
    to = getattr(torch, dtype)
    floats = [isinstance(a, torch.Tensor) and a.is_floating_point() for a in args]
    return [a.detach().to(to).requires_grad_() if f else a for a, f in zip(args, floats, strict=True)]


def dtype_of(args: Sequence[Any]) -> str:
    """The dtype that a table says: of the largest tensor among the arguments."""
    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    largest = max(tensors, key=lambda t: math.prod(t.shape), default=None)
    return "" if largest is None else str(largest.dtype).removeprefix("torch.")


def launching(fn: Callable[..., Any], name: str, command: str) -> Callable[..., Any]:
    """A function that launches kernels: `fn` itself, or, of a kernel, its launch on the grid `<name>_grid` of its file.

    Raises:
        ValueError: a kernel whose file has no grid for it.
    """
    if not isinstance(fn, JITFunction):
        return fn
    grid = fn.fn.__globals__.get(f"{name}_grid")
    if grid is None:
        raise ValueError(
            f"{command}: target is the kernel {name}, wanted a function that launches it, or {name}_grid beside it"
        )

    def launch(*args: Any) -> None:
        fn[grid](*args)

    launch.__name__ = name
    return launch
