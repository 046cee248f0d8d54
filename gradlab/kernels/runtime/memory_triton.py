"""Decides whether a kernel may use a tensor's address: its memory must hold its elements as they are.

Two kinds do not. A lazy tensor (negated, conjugated, or a ZeroTensor) is materialised first. A wrapper (a subclass with
its own dispatch, a FakeTensor, a batched or functional tensor, a meta tensor) goes through torch's dispatcher, which
unwraps or refuses it; one that comes out of the dispatcher still without plain memory is refused here. torch's dispatch
keys distinguish all of them at once.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import reduce
from operator import or_
from typing import Any

import torch

from gradlab.kernels.private.private_torch import dispatch_keys, key_bits, raw_repr

_STRANGE = ~key_bits("CPU", "CUDA", "ADInplaceOrView", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA")
_LAZY = key_bits("Negative", "Conjugate", "ZeroTensor")
# Also set for a subclass without its own dispatch, which has no such key but may have its own torch_function.
_SUBCLASS = key_bits("Python")
_NOT_CPU = _STRANGE | (key_bits("CUDA") & ~key_bits("CPU"))
# Types of other arguments, which a signature contains by value.
_VALUES = {int, float, bool, str, type(None), torch.dtype}
# Classes without their own dispatch.
PLAIN = (torch.Tensor, torch.nn.Parameter)
_PLAIN = set(PLAIN)
_KINDS = {
    "Batched": "a batched tensor of vmap",
    "FuncTorchGradWrapper": "a tensor of torch.func's transforms",
    "Functionalize": "a functional tensor",
    "Meta": "a meta tensor",
    "Sparse": "a sparse tensor",
}


def keys(t: torch.Tensor) -> int:
    """The dispatch keys, as bits, that plain tensors on CPU and CUDA do not have; 0 for a plain tensor."""
    return strange((t,))


def strange(args: tuple) -> int:
    """`keys` of all tensors among an op's arguments and in their lists: one loop, as each eager call runs it."""
    found = 0
    for a in args:
        if isinstance(a, torch.Tensor):
            found |= dispatch_keys(a).raw_repr()
            if type(a) not in PLAIN:
                found |= _SUBCLASS
        elif isinstance(a, list | tuple) and a and isinstance(a[0], torch.Tensor):
            # An optimizer's lists are long: no Python loop.
            found |= reduce(or_, map(raw_repr, map(dispatch_keys, a)))
            if not _PLAIN.issuperset(map(type, a)):
                found |= _SUBCLASS
    return found & _STRANGE


def signature(args: Iterable[Any]) -> tuple | None:
    """What a call depends on besides addresses and elements; None unless all tensors are plain and on a CPU.

    Also None for lists of tensors, and for arguments that are no tensor, number, string or list of these.
    """
    parts: list[Any] = []
    for a in args:
        kind = type(a)
        if kind in PLAIN:
            if dispatch_keys(a).raw_repr() & _NOT_CPU:
                return None
            parts += (a.dtype, a.shape, a.stride(), a.requires_grad)
        elif kind in _VALUES:
            parts += (kind, a)
        elif kind in (list, tuple) and _VALUES.issuperset(kinds := [type(value) for value in a]):
            parts += (*kinds, *a)
        else:
            return None
    return tuple(parts)


def plain(tensors: list[Any]) -> bool:
    """Whether all are plain tensors: not wrapped, not lazy, no subclass."""
    return _PLAIN.issuperset(map(type, tensors)) and not strange((tensors,))


def has_memory(t: torch.Tensor) -> bool:
    """Whether a tensor of any class holds its elements itself, as they are or lazily, and is no wrapper."""
    return not dispatch_keys(t).raw_repr() & _STRANGE & ~_LAZY


def wrapped(found: int) -> bool:
    """Whether these keys are of more than a lazy tensor."""
    return bool(found & ~_LAZY)


def kind(t: torch.Tensor) -> str:
    """A description of a tensor for an error: its class, or its kind of wrapper."""
    if type(t) not in PLAIN:
        return f"a {type(t).__name__}"
    found = str(dispatch_keys(t))
    return next((description for name, description in _KINDS.items() if name in found), f"a tensor of {found}")


def resolved(t: torch.Tensor) -> torch.Tensor:
    """The tensor itself, or a materialised copy of a lazy one."""
    if not isinstance(t, torch.Tensor) or not keys(t) & _LAZY:
        return t
    return t.new_zeros(t.shape) if t._is_zerotensor() else t.resolve_conj().resolve_neg()


def resolving(op: str, fn: Callable, written: Collection[int]) -> Callable[..., Any]:
    """`fn` on materialised copies of its lazy arguments; those of index in `written` are copied back afterwards.

    A tensor that is passed twice has one copy, so that what is written is what is read.
    """

    @functools.wraps(fn)
    def call(*args: Any) -> Any:
        copies: dict[int, torch.Tensor] = {}

        def real(t: Any) -> Any:
            if not isinstance(t, torch.Tensor):
                return t
            if id(t) not in copies:
                copies[id(t)] = resolved(t)
            return copies[id(t)]

        for t in _tensors([args[i] for i in written]):
            if t._is_zerotensor():
                raise TypeError(f"gradlab::{op}: a tensor to write is a ZeroTensor, wanted one with memory")
        result = fn(*([real(t) for t in a] if isinstance(a, list | tuple) else real(a) for a in args))
        for t in _tensors([args[i] for i in written]):
            if real(t) is not t:
                t.copy_(real(t))
        return result

    return call


def addressable(op: str, fn: Callable) -> Callable[..., Any]:
    """`fn` with a check behind torch's dispatcher: an argument without plain memory raises a TypeError."""
    names = list(inspect.signature(fn).parameters)

    @functools.wraps(fn)
    def call(*args: Any) -> Any:
        if strange(args):
            for name, a in zip(names, args, strict=False):
                for t in _tensors([a]):
                    if not has_memory(t):
                        raise TypeError(f"gradlab::{op}: {name} is {kind(t)}, wanted a plain torch.Tensor")
        return fn(*args)

    return call


def _tensors(values: list[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        for t in value if isinstance(value, list | tuple) else (value,):
            if isinstance(t, torch.Tensor):
                yield t
