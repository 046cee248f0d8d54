"""The lab's kernels in Triton's interpreter: a second opinion on what the CPU's compiler makes of them, and slow.

Triton decides between its compiler and its interpreter when a kernel is decorated, from an environment variable that
holds for the process. Here the interpreted form is made from the same Python function on first use, and Triton's
language module gets its NumPy implementation only while it runs, under a lock, and is restored afterwards.
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
import triton.language as tl
from triton.runtime.jit import JITFunction

from gradlab.kernels.private.private_triton import interpreter, patch_language, to_interpreted
from gradlab.kernels.runtime.forking import Lock

_switched = (tl, tl.core, tl.math, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base)
# The language's modules and classes with their attributes, while `_meanings` finds what interpretation replaces.
_before: list[tuple[Any, dict[str, Any]]] | None = None


def _put_back() -> None:
    """In a child forked while another thread interpreted: the language has its compiled meaning again."""
    global _before
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


def interpret(
    jit: JITFunction, grid: tuple[int, ...], args: tuple, writes: Sequence[torch.Tensor], constants: dict[str, Any]
) -> None:
    """Run `jit` over `grid` on NumPy arrays over the tensors' memory."""
    with staged([a for a in args if isinstance(a, torch.Tensor)], writes) as stage:
        args = tuple(stage(a) if isinstance(a, torch.Tensor) else a for a in args)
        values = inspect.getcallargs(jit.fn, *args, **constants)
        given = jit.fn.__annotations__
        values = {k: v if k in constants else to_interpreted(v, given.get(k)) for k, v in values.items()}
        grid = grid + (1,) * (3 - len(grid))
        fn = _interpreted_form(jit)
        with _lock, _numpy_language(), np.errstate(all="ignore"):
            builder = interpreter().interpreter_builder
            builder.set_grid_dim(*grid)
            for index in np.ndindex(*grid):
                builder.set_grid_idx(*index)
                fn(**values)


@contextmanager
def staged(tensors: Sequence[torch.Tensor], writes: Sequence[torch.Tensor]) -> Iterator[Callable]:
    """Give an interpreted kernel float32 in place of bfloat16, and round to nearest when it is written back.

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
    """A float32 copy with the same shape and strides; `Tensor.float` changes those of an expanded tensor."""
    extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    return t.detach().as_strided((extent,), (1,)).float().as_strided(t.shape, t.stride(), 0)


@functools.cache
def _interpreted_form(jit: JITFunction) -> Callable:
    """The kernel's Python function, rewritten for the interpreter, in a namespace of its own."""
    names = dict(jit.fn.__globals__)
    fn = types.FunctionType(jit.fn.__code__, names, jit.fn.__name__, jit.fn.__defaults__, jit.fn.__closure__)
    called = {k: names[k] for k in fn.__code__.co_names if isinstance(names.get(k), JITFunction)}
    names.update({k: _interpreted_form(v) for k, v in called.items()})
    return interpreter().FunctionRewriter(fn).rewrite_ast()


def _fma(x: Any, y: Any, z: Any) -> Any:
    """x y + z rounded once, which is what a kernel asks for; Triton's interpreter rounds the product too."""
    wide = np.longdouble if x.data.dtype == np.float64 else np.float64
    rounded = (x.data.astype(wide) * y.data + z.data).astype(x.data.dtype)
    return interpreter().TensorHandle(rounded, z.dtype.scalar)


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
    """Set or delete an attribute."""
    if member is not _absent:
        setattr(place, name, member)
    elif name in vars(place):
        delattr(place, name)


@functools.cache
def _meanings() -> list[tuple[Any, str, Any, Any]]:
    """Every attribute that interpretation replaces: where, name, compiled meaning, NumPy meaning.

    Found once, by letting Triton patch its modules and comparing, as that takes milliseconds.
    """
    global _before
    before = _before = [(place, dict(vars(place))) for place in _switched]
    # Triton patches the modules in a kernel's globals; a kernel that calls tl.sum needs both.
    patch_language({"tl": tl, "core": tl.core})
    # tl.sum, tl.max, ... are kernels themselves: their Python functions run.
    for name, member in list(vars(tl).items()):
        if isinstance(member, JITFunction):
            setattr(tl, name, member.fn)
    # The compiler checks integers for overflow in debug builds only; in the interpreter it doubles the work.
    options = interpreter().interpreter_builder.options
    interpreter().interpreter_builder.options = dataclasses.replace(options, sanitize_overflow=False)
    interpreter().interpreter_builder.create_fma = _fma
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
