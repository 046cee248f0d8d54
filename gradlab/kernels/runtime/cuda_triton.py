"""Launches on CUDA: by Triton at a kernel's first launch, by the launcher in C that Triton compiled from then on.

Triton asks of every argument at every launch what the code depends on, and hands all of them on several times: 12 to
22 microseconds for 11 to 29 arguments. Here a launch is looked up by its arguments: types, numbers, and of a tensor its
dtype and whether its address is a multiple of 16. What is found is the launch with addresses, floats, grid and stream
left open. Numbers that are new are looked up by what Triton specialises of them, and compiled by Triton if that is new.

Triton's own path is also taken where somebody listens to its launches or asks for other code: hooks, debugging,
settings of `triton.knobs`, arguments that are neither tensors nor numbers, such as descriptors of tensors made by the
host, and versions of Triton whose launcher `private_triton` does not know. Environment variables are read when a kernel
is compiled, and global variables of a kernel are taken as they were then.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from gradlab.kernels.private.private_triton import CLauncher, c_launcher, scratch_allocator

# Launches cached; past this the cache is cleared.
MOST = 8192
# Types of arguments beside tensors, which Triton specialises by their values alone, or not at all.
_PLAIN = {int, bool, float, type(None)}


class _Kinds:
    """The types of a launch's arguments, found again by identity: which are tensors, and which are floats."""

    __slots__ = ("floats", "tensors")

    def __init__(self, kinds: tuple[type, ...]) -> None:
        self.tensors = [i for i, kind in enumerate(kinds) if issubclass(kind, torch.Tensor)]
        self.floats = [i for i, kind in enumerate(kinds) if kind is float]


class _Launch(NamedTuple):
    """A launch's arguments in the order of the code's: `given` has the places of those that differ from call to call.

    Attributes:
        given: (place among the values, number among addresses and floats).
    """

    launcher: CLauncher
    values: list[Any]
    given: list[tuple[int, int]]


_kinds: dict[tuple[type, ...], _Kinds] = {}
_launches: dict[tuple[Any, ...], _Launch] = {}
# By what of the arguments the code depends on; None if Triton has to launch it.
_launchers: dict[tuple[Any, ...], CLauncher | None] = {}


def forget() -> None:
    """Drop every launch from memory."""
    _launches.clear()
    _launchers.clear()
    _kinds.clear()


def run(
    jit: JITFunction,
    grid: Sequence[int],
    args: tuple,
    written: torch.Tensor,
    warps: int,
    stages: int,
    constants: dict[str, Any],
) -> None:
    """Launch `jit` on the current stream of the device of `written`, without waiting for anything.

    Raises:
        ValueError: more programs along the second or third axis than CUDA has.
    """
    if len(grid) > 1 and max(grid[1:]) > 65535:
        raise ValueError(f"{jit.fn.__name__}: grid is {tuple(grid)}, wanted at most 65535 programs past the first axis")
    device, active = written.get_device(), driver.active
    if active.get_current_device() != device:
        with torch.cuda.device(device):
            run(jit, grid, args, written, warps, stages, constants)
        return
    kinds = _kinds.get(types := tuple(map(type, args))) or _added(types)
    if kinds is None or not _usual(jit):
        _by_triton(jit, grid, args, written, warps, stages, constants)
        return
    values = [*args]
    given: list[Any] = []
    for i in kinds.tensors:
        t = args[i]
        address = t.data_ptr()
        given.append(address)
        if address & 15 or t.get_device() != device:
            values[i] = t.dtype, not address & 15, t.get_device() == device
        else:
            values[i] = t.dtype
    for i in kinds.floats:
        given.append(args[i])
        values[i] = None
    # Names of constants, too: two calls may have them in another order.
    key = (id(jit), device, warps, stages, kinds, *constants, *constants.values(), *values)
    found = _launches.get(key)
    if found is None:
        found = _prepared(key, kinds, args)
        if found is None:
            _first(key, kinds, jit, grid, args, written, warps, stages, constants)
            return
    launcher, passed, places = found
    # A copy: other threads launch the same.
    passed = passed.copy()
    for place, number in places:
        passed[place] = given[number]
    call, _, scratch, _ = launcher
    x, y, z = grid if len(grid) == 3 else (*grid, 1, 1)[:3]
    if scratch:
        # Freed as soon as the kernel is launched: torch gives it to this stream only, for what comes behind.
        held = written.new_empty(x * y * z * scratch, dtype=torch.uint8)
        call(x, y, z, active.get_current_stream(device), held.data_ptr(), passed)
    else:
        call(x, y, z, active.get_current_stream(device), None, passed)


def _usual(jit: JITFunction) -> bool:
    """Whether no launch hook is set, and no debugging option or setting asks for other code than the first launch."""
    settings = knobs.runtime
    enter, leave = settings.launch_enter_hook, settings.launch_exit_hook
    return not (
        getattr(enter, "calls", enter)
        or getattr(leave, "calls", leave)
        or jit.pre_run_hooks
        or settings.debug
        or settings.add_stages_inspection_hook
        # Settings made in Python; those of the environment are not in it.
        or knobs.compilation.__dict__
    )


def _added(types: tuple[type, ...]) -> _Kinds | None:
    if not all(t in _PLAIN or issubclass(t, torch.Tensor) for t in types):
        return None
    if len(_kinds) >= MOST:
        forget()
    found = _kinds[types] = _Kinds(types)
    return found


def _prepared(key: tuple[Any, ...], kinds: _Kinds, args: tuple) -> _Launch | None:
    """The launch of a kernel that is compiled; None if Triton has to launch it."""
    launcher = _launchers.get(_classes(key, len(args)))
    if launcher is None:
        return None
    if len(_launches) >= MOST:
        _launches.clear()
    numbers = {i: number for number, i in enumerate([*kinds.tensors, *kinds.floats])}
    # No tensor is kept.
    values = [None if i is None or i in numbers else args[i] for i in launcher.passed]
    given = [(place, numbers[i]) for place, i in enumerate(launcher.passed) if i in numbers]
    found = _launches[key] = _Launch(launcher, values, given)
    return found


def _classes(key: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """What the code depends on: of integers, the last `count`, which are 1, multiples of 16, and how wide."""
    return (
        *key[:-count],
        *[
            v
            if v.__class__ is not int or v == 1
            else (v % 16 == 0, "i32" if -(2**31) <= v < 2**31 else "i64" if v < 2**63 else "u64")
            for v in key[-count:]
        ],
    )


def _first(key: tuple[Any, ...], kinds: _Kinds, jit: JITFunction, grid: Sequence[int], args: tuple, *rest: Any) -> None:
    """Launch by Triton, and keep the launcher of what it compiles."""
    compiled = _by_triton(jit, grid, args, *rest)
    # A tensor of another device is for Triton to refuse, or to take if it is pinned memory of the host.
    if all(args[i].get_device() == key[1] for i in kinds.tensors):
        if len(_launchers) >= MOST:
            _launchers.clear()
        _launchers[_classes(key, len(args))] = c_launcher(compiled, jit)


def _by_triton(
    jit: JITFunction,
    grid: Sequence[int],
    args: tuple,
    written: torch.Tensor,
    warps: int,
    stages: int,
    constants: dict[str, Any],
) -> Any:
    """Launch as Triton does; returns its compiled kernel."""

    def allocate(size: int, alignment: int, stream: int | None) -> torch.Tensor:
        return written.new_empty(size, dtype=torch.uint8)

    with scratch_allocator(allocate):
        # FP fusion is explicit because its default, and so the last bit, differs between Triton releases.
        return jit[tuple(grid)](*args, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=True)
