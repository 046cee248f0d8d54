"""What an eager call of an op on a CPU comes to, kept by the shapes, strides and dtypes of its arguments.

Calls that differ in addresses alone allocate the same memory and launch the same kernels with the same numbers. At the
second of them the op runs on stand-ins for its arguments, and what it asks for is noted, not done: a plan, which later
calls follow without its Python. An op that does more than allocate, view and launch (it computes with torch's own ops,
or steps a list of tensors) has no plan, and runs as it stands.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from gradlab.kernels import compiled_triton
from gradlab.kernels.cpu.launching import Grid, Kernel

# Signatures that an op keeps; where there are ever new ones, the old make room.
MOST = 1024
# Elements of a tensor from which on a launch takes much longer than the host does, and stand-ins are no small matter.
_LARGE = 2**22
_CPU = torch.device("cpu")
_aten = torch.ops.aten
_ALLOCATIONS = {
    _aten.empty.memory_format, _aten.empty_like.default, _aten.empty_strided.default, _aten.new_empty.default,
    _aten.new_empty_strided.default,
}  # fmt: skip


class Unplanned(Exception):
    """The op does what no plan can follow."""


class _Noting(threading.local):
    """What the op that runs on stand-ins in this thread has asked for: launches, and looks at its arguments' values."""

    steps: list[tuple[Any, ...]] | None = None


_noting = _Noting()


def noting() -> bool:
    """Whether an op runs on stand-ins in this thread."""
    return _noting.steps is not None


def noted(jit: JITFunction, grid: Sequence[int], args: Sequence[Any], constants: dict[str, Any]) -> bool:
    """Note a launch instead of running it, in an op that runs on stand-ins; elsewhere False."""
    if _noting.steps is None:
        return False
    _noting.steps.append((jit, grid, args, constants))
    return True


def looks(fn: Callable[..., None]) -> Callable[..., None]:
    """Decorate a function that looks at the values of an op's arguments, to refuse some: a plan calls it in its place."""

    @functools.wraps(fn)
    def call(*args: Any) -> None:
        if _noting.steps is None:
            fn(*args)
        else:
            _noting.steps.append((fn, *args))

    return call


class _Allocations(TorchDispatchMode):
    """Keeps what is allocated within it; views pass, anything else raises Unplanned."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ALLOCATIONS:
            self.made.append(func(*args, **(kwargs or {})))
            return self.made[-1]
        if func.is_view:
            return func(*args, **(kwargs or {}))
        raise Unplanned


class _Memory:
    """The op's memory by number: the tensors among its arguments, then what it makes."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tensors = tensors
        self._numbers = {t.untyped_storage().data_ptr(): i for i, t in enumerate(tensors) if t.numel()}

    def address(self, t: torch.Tensor) -> tuple[int, int] | None:
        """The number of the memory that a tensor lies in, and bytes from its start; None for one without elements."""
        if not t.numel():
            return None
        number = self._numbers[t.untyped_storage().data_ptr()]
        return number, t.data_ptr() - self.tensors[number].data_ptr()

    def place(self, t: torch.Tensor) -> "_Place":
        """How a tensor is made of its memory.

        Raises:
            Unplanned: it is not a view of it in torch's own sense.
        """
        for number, own in enumerate(self.tensors):
            if own is t:
                return _Place(number, None)
        found = self.address(t)
        if found is None or t.dtype != self.tensors[found[0]].dtype:
            raise Unplanned
        return _Place(found[0], (t.shape, t.stride(), found[1] // t.itemsize))


class _Place(NamedTuple):
    """A tensor in numbered memory: as it was given or made, or a view of it: shape, stride, elements past its start."""

    number: int
    view: tuple[torch.Size, tuple[int, ...], int] | None

    def of(self, memory: Sequence[torch.Tensor]) -> torch.Tensor:
        """The tensor itself."""
        t = memory[self.number]
        if self.view is None:
            return t
        shape, stride, past = self.view
        return t.as_strided(shape, stride, t.storage_offset() + past)


class Plan:
    """An op's allocations and launches, for arguments of one signature.

    Args:
        fn: the op.
        args: such arguments; they are neither read nor written.

    Raises:
        Unplanned: the op does more.
    """

    def __init__(self, fn: Callable[..., Any], args: Sequence[Any]) -> None:
        self._given = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor)]
        stands = {i: torch.empty_strided(args[i].shape, args[i].stride(), dtype=args[i].dtype) for i in self._given}
        _noting.steps = steps = []
        try:
            with _Allocations() as allocations:
                result = fn(*[stands.get(i, a) for i, a in enumerate(args)])
        finally:
            _noting.steps = None
        memory = _Memory([*stands.values(), *allocations.made])
        self._looks = [(look, [memory.place(a) if isinstance(a, torch.Tensor) else a for a in given])
                       for look, *given in steps if not isinstance(look, JITFunction)]  # fmt: skip
        self._launches = [_launch(memory, *step) for step in steps if isinstance(step[0], JITFunction)]
        self._alone = isinstance(result, torch.Tensor)
        self._results = [memory.place(t) for t in ([result] if self._alone else result or ())]
        self._made = [(t.shape, t.stride(), t.dtype) for t in allocations.made]
        self._make_as_given(len(stands))

    def _make_as_given(self, arguments: int) -> None:
        """What the op gives as a view of all of one piece of memory is made in that shape at once."""
        numbers = [place.number for place in self._results]
        if min(numbers, default=arguments) < arguments:
            raise Unplanned
        for i, (number, view) in enumerate(self._results):
            shape, stride, dtype = self._made[number - arguments]
            if view is not None and numbers.count(number) == 1 and view[2] == 0:
                if _extent(view[0], view[1]) == _extent(shape, stride):
                    self._made[number - arguments] = (view[0], view[1], dtype)
                    self._results[i] = _Place(number, None)

    def __call__(self, args: Sequence[Any]) -> Any:
        """What the op does and gives."""
        memory = [args[i] for i in self._given]
        for look, given in self._looks:
            look(*[a.of(memory) if a.__class__ is _Place else a for a in given])
        memory += [torch.empty_strided(shape, stride, dtype=dtype, device=_CPU) for shape, stride, dtype in self._made]
        starts = [t.data_ptr() for t in memory]
        for kernel, grid, values, addresses in self._launches:
            values = values.copy()
            for slot, number, past in addresses:
                values[slot] = starts[number] + past
            kernel(grid, values)
        if self._alone:
            return self._results[0].of(memory)
        return tuple([place.of(memory) for place in self._results]) or None


def _launch(memory: _Memory, jit: JITFunction, grid: Sequence[int], args: Sequence[Any],
            constants: dict[str, Any]) -> tuple[Kernel, Grid, list[Any], list[tuple[int, int, int]]]:  # fmt: skip
    """A kernel, its grid, the numbers in its slots, and which slots are addresses: whose, and bytes past its start."""
    found = compiled_triton.prepared(jit, args, constants)
    values, addresses = found.values(args, constants), []
    for slot, (number, tensor) in enumerate(zip(found.numbers, found.tensors, strict=True)):
        if tensor:
            start = memory.address(args[number])
            values[slot] = 0
            if start is not None:
                addresses.append((slot, *start))
    return found.kernel, _three(grid), values, addresses


def _three(grid: Sequence[int]) -> Grid:
    x, y, z = (*grid, 1, 1)[:3]
    return x, y, z


def _extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from the first to the last; there is one."""
    return 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))


class Plans:
    """An op with its plans, by signature."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        # True: seen once; False: there is no plan.
        self._kept: dict[tuple, Plan | bool] = {}
        _EVERY.append(self._kept)

    def __call__(self, signature: tuple, args: Sequence[Any]) -> Any:
        """What the op does and gives for arguments of that signature."""
        plan = self._kept.get(signature)
        if plan.__class__ is Plan:
            return plan(args)
        if plan is None:
            if len(self._kept) >= MOST:
                self._kept.clear()
            self._kept[signature] = True
        elif plan is True:
            self._kept[signature] = self._planned(args)
        return self._fn(*args)

    def _planned(self, args: Sequence[Any]) -> Plan | bool:
        if any(isinstance(a, torch.Tensor) and a.numel() > _LARGE for a in args):
            return False
        try:
            return Plan(self._fn, args)
        except Unplanned:
            return False


_EVERY: list[dict[tuple, Plan | bool]] = []


def forget() -> None:
    """Make all plans anew: what they were made with has changed."""
    for kept in _EVERY:
        kept.clear()
