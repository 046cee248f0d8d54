"""Plans: eager calls on CPU tensors, recorded once and replayed, by the signature of their arguments.

Calls that differ only in addresses and elements allocate the same memory and launch the same kernels with the same
numbers. At the second such call the function runs on stand-in tensors, and its allocations, launches and torch ops are
recorded: a plan. That call and later ones replay the plan without the function's own Python, which takes the host
longer than a small kernel. A function that reads values must be marked (`looks`), or it has no plan and runs as usual.
"""

import functools
import mmap
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from triton.runtime.jit import JITFunction

from gradlab.kernels.cpu.launching import Grid, Kernel
from gradlab.kernels.private.private_torch import TorchDispatchMode
from gradlab.kernels.runtime import compiled_triton

# Signatures cached for each function; past this the cache is cleared.
MOST = 1024
# Elements of a tensor from which on the launch dominates the host's time, and stand-ins become expensive.
_LARGE = 2**20
# Elements of scratch memory: a plan holds all of it to the end, where the function frees it earlier.
_SCRATCH = 2**14
_CPU = torch.device("cpu")
_NONE: Mapping[str, Any] = MappingProxyType({})
_aten = torch.ops.aten
_ALLOCATIONS = {
    _aten.empty.memory_format,
    _aten.empty_like.default,
    _aten.empty_strided.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
}
# Ops of torch whose results depend on data or on a random state, not only on their arguments' signatures.
_UNKNOWN = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}


class Unplanned(Exception):
    """The function does something that no plan can replay."""


class _Noting(threading.local):
    """The steps recorded of the function that runs on stand-ins in this thread."""

    steps: list[tuple[Any, ...]] | None = None


_noting = _Noting()


def noting() -> bool:
    """Whether a function runs on stand-ins in this thread."""
    return _noting.steps is not None


def unplanned() -> None:
    """Declare that no plan can replay the caller, because it keeps state from one call to the next."""
    if noting():
        raise Unplanned


def noted(jit: JITFunction, grid: Sequence[int], args: Sequence[Any], constants: dict[str, Any]) -> bool:
    """Record a launch for a plan instead of running it; False if no plan is being recorded."""
    if _noting.steps is None:
        return False
    _noting.steps.append((jit, grid, args, constants))
    return True


def looks(fn: Callable[..., None]) -> Callable[..., None]:
    """Decorate a function that checks the values of its tensors: a plan calls it at its place."""

    @functools.wraps(fn)
    def call(*args: Any) -> None:
        if _noting.steps is None:
            fn(*args)
        else:
            _noting.steps.append((fn, args, {}, None))

    return call


class _Torch(TorchDispatchMode):
    """Keeps the tensors allocated within it, and records torch ops that compute; views pass."""

    def __init__(self, steps: list[tuple[Any, ...]]) -> None:
        super().__init__()
        self.made: list[torch.Tensor] = []
        self._steps = steps

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _UNKNOWN.intersection(func.tags):
            raise Unplanned
        result = func(*args, **kwargs)
        if func in _ALLOCATIONS:
            self.made.append(result)
        elif not isinstance(result, torch.Tensor):
            raise Unplanned
        elif not func.is_view:
            self._steps.append((func, args, kwargs, result))
        return result


class _Memory:
    """The function's memory by number: its tensor arguments, its allocations, and results of torch's ops."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.tensors: list[torch.Tensor] = []
        self._numbers: dict[int, int] = {}
        for t in tensors:
            self.add(t)

    def add(self, t: torch.Tensor) -> bool:
        """Number a tensor's memory, unless it has a number."""
        storage = t.untyped_storage().data_ptr()
        if t.numel() and storage in self._numbers:
            return False
        self._numbers[storage] = len(self.tensors)
        self.tensors.append(t)
        return True

    def address(self, t: torch.Tensor) -> tuple[int, int] | None:
        """The number of a tensor's memory, and the offset in bytes; None for a tensor without elements."""
        if not t.numel():
            return None
        number = self._numbers.get(t.untyped_storage().data_ptr())
        if number is None:
            raise Unplanned
        return number, t.data_ptr() - self.tensors[number].data_ptr()

    def place(self, value: Any) -> Any:
        """A tensor as its `_Place`; anything else as it is."""
        if isinstance(value, list | tuple) and any(isinstance(t, torch.Tensor) for t in value):
            raise Unplanned
        if not isinstance(value, torch.Tensor):
            return value
        for number, own in enumerate(self.tensors):
            if own is value:
                return _Place(number, None)
        found = self.address(value)
        if found is None or value.dtype != self.tensors[found[0]].dtype:
            raise Unplanned
        return _Place(found[0], (value.shape, value.stride(), found[1] // value.itemsize))


class _Place(NamedTuple):
    """A tensor in numbered memory: all of it, or a view (shape, stride, offset in elements)."""

    number: int
    view: tuple[torch.Size, tuple[int, ...], int] | None

    def of(self, memory: Sequence[torch.Tensor]) -> torch.Tensor:
        """The tensor itself."""
        t = memory[self.number]
        if self.view is None:
            return t
        shape, stride, past = self.view
        return t.as_strided(shape, stride, t.storage_offset() + past)


class _Launch(NamedTuple):
    """Values in the order of the kernel's slots, and which slots are addresses: (slot, memory, offset in bytes)."""

    kernel: Kernel
    grid: Grid
    values: list[Any]
    addresses: list[tuple[int, int, int]]


class _Call(NamedTuple):
    """A torch op, or a function that looks at values; `is_new` if its result is new memory."""

    fn: Callable[..., Any]
    args: list[Any]
    options: dict[str, Any]
    is_new: bool


class Plan:
    """The allocations, launches and calls of a function, for arguments of one signature.

    Args:
        fn: the function.
        args, options: arguments of that signature, which are neither read nor written.

    Raises:
        Unplanned: the function does something else, too.
    """

    def __init__(self, fn: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any]) -> None:
        given = [*args, *options.values()]
        self._given = [i for i, a in enumerate(given) if isinstance(a, torch.Tensor)]
        for i in self._given:
            given[i] = _stand_in(given[i])
        steps: list[tuple[Any, ...]] = []
        _noting.steps = steps
        try:
            with _Torch(steps) as torch_mode:
                result = fn(*given[: len(args)], **dict(zip(options, given[len(args) :], strict=True)))
        finally:
            _noting.steps = None
        self._made = [(t.shape, t.stride(), t.dtype) for t in torch_mode.made]
        memory = _Memory([given[i] for i in self._given] + torch_mode.made)
        self._steps = [_launch(memory, *s) if isinstance(s[0], JITFunction) else _call(memory, *s) for s in steps]
        self._alone = isinstance(result, torch.Tensor)
        results = (result,) if self._alone else result
        if result is not None and not (type(results) is tuple and results and all(map(torch.is_tensor, results))):
            raise Unplanned
        self._results = [memory.place(t) for t in results or ()]
        returned = {place.number - len(self._given) for place in self._results}
        if sum(t.numel() for i, t in enumerate(torch_mode.made) if i not in returned) > _SCRATCH:
            raise Unplanned
        self._make_as_given()

    def _make_as_given(self) -> None:
        """Allocate a result that is a view of all of its memory in the view's shape."""
        numbers = [place.number for place in self._results]
        if min(numbers, default=len(self._given)) < len(self._given):
            raise Unplanned
        used = {a.number for step in self._steps if isinstance(step, _Call) for a in step.args if isinstance(a, _Place)}
        for i, (number, view) in enumerate(self._results):
            made = number - len(self._given)
            if view is None or made >= len(self._made) or number in used or numbers.count(number) > 1:
                continue
            shape, stride, dtype = self._made[made]
            if not view[2] and _extent(*view[:2]) == _extent(shape, stride):
                self._made[made] = (view[0], view[1], dtype)
                self._results[i] = _Place(number, None)

    def __call__(self, args: Sequence[Any]) -> Any:
        """Replay the plan; `args` are the function's arguments, then its options' values. Returns its results."""
        memory = [args[i] for i in self._given]
        for shape, stride, dtype in self._made:
            memory.append(torch.empty_strided(shape, stride, dtype=dtype, device=_CPU))
        starts = [t.data_ptr() for t in memory]
        for step in self._steps:
            if isinstance(step, _Launch):
                kernel, grid, values, addresses = step
                values = values.copy()
                for slot, number, past in addresses:
                    values[slot] = starts[number] + past
                kernel(grid, values)
            else:
                fn, given, options, is_new = step
                result = fn(*[a.of(memory) if a.__class__ is _Place else a for a in given], **options)
                if is_new:
                    memory.append(result)
                    starts.append(result.data_ptr())
        if self._alone:
            return self._results[0].of(memory)
        return tuple([place.of(memory) for place in self._results]) or None


def _launch(
    memory: _Memory, jit: JITFunction, grid: Sequence[int], args: Sequence[Any], constants: dict[str, Any]
) -> _Launch:
    found = compiled_triton.prepared(jit, args, constants)
    values, addresses = found.values(args, constants), []
    for slot, (number, tensor) in enumerate(zip(found.numbers, found.tensors, strict=True)):
        start = memory.address(args[number]) if tensor else None
        if start is not None:
            addresses.append((slot, *start))
    x, y, z = (*grid, 1, 1)[:3]
    return _Launch(found.kernel, (x, y, z), values, addresses)


def _call(memory: _Memory, fn: Callable[..., Any], args: Sequence[Any], options: dict[str, Any], result: Any) -> _Call:
    if any(isinstance(value, torch.Tensor) for value in options.values()):
        raise Unplanned
    places = [memory.place(a) for a in args]
    return _Call(fn, places, options, result is not None and memory.add(result))


def _stand_in(t: torch.Tensor) -> torch.Tensor:
    """A tensor like `t` in its own address space, which uses no memory until it is written."""
    if not t.numel():
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=_CPU).requires_grad_(t.requires_grad)
    extent = _extent(t.shape, t.stride())
    held = torch.frombuffer(mmap.mmap(-1, extent * t.itemsize), dtype=t.dtype, count=extent)
    return held.as_strided(t.shape, t.stride()).requires_grad_(t.requires_grad)


def _extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements spanned in memory, for a tensor with elements."""
    return 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))


class Plans:
    """A function with its plans, by signature."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        # True: seen once; False: there is no plan.
        self._plans: dict[Any, Plan | bool] = {}
        _EVERY.append(self._plans)

    def __call__(self, signature: Any, args: Sequence[Any], options: Mapping[str, Any] = _NONE) -> Any:
        """Call the function, by its plan if there is one for the signature."""
        plan = self._plans.get(signature)
        if plan is None:
            if len(self._plans) >= MOST:
                self._plans.clear()
            self._plans[signature] = True
        elif plan is True and not noting():
            plan = self._plans[signature] = self._planned(args, options)
        if isinstance(plan, Plan):
            return plan((*args, *options.values()) if options else args)
        return self._fn(*args, **options)

    def _planned(self, args: Sequence[Any], options: Mapping[str, Any]) -> Plan | bool:
        if any(isinstance(a, torch.Tensor) and a.numel() > _LARGE for a in (*args, *options.values())):
            return False
        try:
            return Plan(self._fn, args, options)
        except Unplanned:
            return False


_EVERY: list[dict[Any, Plan | bool]] = []


def forget() -> None:
    """Drop all plans, as something that they depend on has changed."""
    for plans in _EVERY:
        plans.clear()
