"""Launches of a compiled kernel: arguments are written to memory, programs spread over threads, failures raised.

Arguments are plain numbers and addresses, so that no framework is imported; callers keep the memory alive.
"""

import ctypes
import math
import operator
import os
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from gradlab.kernels.cpu.binary import Binary
from gradlab.kernels.cpu.machine import Code
from gradlab.kernels.cpu.slots import Slots
from gradlab.kernels.cpu.threads import LONGEST, Team

# Seconds of work from which on a second thread is worth using.
SPREAD = 200e-6
_LARGEST = 2**31 - 1
# A failed program's report: message number, program, six reserved words; then the address of the print callback.
_REPORT = struct.Struct("<8qQ7q")
_REPORTED = 8
_Print = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
# Kinds of printed values, as the compiler numbers them; the others are signed integers.
_FLOAT, _POINTER, _UNSIGNED, _NOTHING = 1, 2, 3, -1

Grid = tuple[int, int, int]
Failure = tuple[int, ...] | None


def cores() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Kernel:
    """A compiled kernel in this process's memory, called with its grid and its arguments' values.

    Any number of threads may call it at once. A call returns when every program has run, and releases the GIL
    meanwhile.

    Args:
        binary: the kernel's machine code and metadata.
        threads: called at each large launch for the number of threads that it may use.
    """

    def __init__(self, binary: Binary, threads: Callable[[], int] = cores) -> None:
        self.binary = binary
        self._threads = (lambda: 1) if binary.ordered else threads
        self._slots = Slots(binary.name, binary.arguments)
        self._call = Code(binary.code).function(
            binary.entry,
            ctypes.c_int64,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int32,
            ctypes.c_int32,
            ctypes.c_int32,
            ctypes.c_void_p,
            ctypes.c_void_p,
        )
        # Seconds a program, estimated from earlier launches.
        self._seconds = math.inf
        # A kernel that prints has its own pool, whose callbacks hold its messages.
        self._size = 2 ** (self._slots.size - 1).bit_length(), 2 ** (binary.scratch - 1).bit_length()
        self._idle: list[_Memory] = [] if binary.ordered else _IDLE[self._size]

    def __call__(self, grid: Grid, values: Sequence[Any]) -> None:
        """Run the kernel.

        Args:
            grid: programs along the three axes; with a zero axis nothing runs.
            values: addresses and numbers, in the order of `binary.arguments`.

        Raises:
            AssertionError: a `tl.device_assert` did not hold.
            TypeError, ValueError: an argument or the grid is not what the kernel takes.
        """
        x, y, z = grid
        programs = x * y * z
        usual = type(programs) is int and 0 < x <= _LARGEST and 0 < y <= _LARGEST and 0 < z <= _LARGEST
        if not usual or programs >= 2**63:
            x, y, z = grid = self._checked(grid)
            programs = x * y * z
            if not programs:
                return
        memory = self._take()
        self._slots.write(memory.arguments, values)
        expected = programs * self._seconds
        if expected < SPREAD or (expected < LONGEST and self._threads() == 1):
            start = time.perf_counter()
            failure = self._run(memory, memory.address, 0, programs, grid)
            # One launch that was preempted must not count much: the estimate grows by at most 8x a launch.
            self._seconds = min((time.perf_counter() - start) / programs, 8 * self._seconds)
        else:
            failure = self._long(memory.address, programs, grid)
        self._idle.append(memory)
        if failure is not None:
            raise AssertionError(self._message(failure, grid))

    def _long(self, arguments: int, programs: int, grid: Grid) -> Failure:
        """A launch that takes long, or whose duration is unknown."""

        def run(begin: int, end: int) -> Failure:
            memory = self._take()
            failure = self._run(memory, arguments, begin, end, grid)
            self._idle.append(memory)
            return failure

        begin = 0
        if math.isinf(self._seconds):
            start = time.perf_counter()
            failure = run(0, 1)
            self._seconds = time.perf_counter() - start
            begin = 1
            if failure is not None or programs == 1:
                return failure
        threads = self._threads() if (programs - begin) * self._seconds >= SPREAD else 1
        team = Team(run, begin, programs, self._seconds, max(1, min(threads, programs - begin)))
        failure = team.run()
        self._seconds = team.seconds
        return failure

    def _run(self, memory: "_Memory", arguments: int, begin: int, end: int, grid: Grid) -> Failure:
        memory.grid = grid
        failed = self._call(arguments, begin, end, *grid, memory.scratch, memory.report_address)
        if memory.error is not None:
            raise memory.error
        return _REPORT.unpack(memory.report)[:_REPORTED] if failed else None

    def _take(self) -> "_Memory":
        try:
            return self._idle.pop()
        except IndexError:
            return _Memory(*self._size, self.binary.messages if self.binary.ordered else ())

    def _checked(self, grid: Sequence[Any]) -> Grid:
        shown = f"{self.binary.name}: the grid is {tuple(grid)}"
        try:
            x, y, z = map(operator.index, grid)
        except TypeError:
            raise TypeError(f"{shown}, wanted integers") from None
        if min(x, y, z) < 0:
            raise ValueError(f"{shown}, wanted no negative number of programs")
        if max(x, y, z) > _LARGEST or x * y * z >= 2**63:
            raise ValueError(f"{shown}, wanted at most {_LARGEST} programs along an axis and 2**63 - 1 in all")
        return x, y, z

    def _message(self, failure: tuple[int, ...], grid: Grid) -> str:
        message, program = failure[:2]
        text, place = self.binary.messages[message]
        return f"{place}: {text or 'device_assert'} (program {_place(program, grid)} of {self.binary.name})"


class _Memory:
    """Memory that one thread needs while it runs programs: the arguments' slots, a report, scratch.

    Attributes:
        grid: the grid of the launch that uses it.
        error: the exception that a print raised, as none can pass through compiled code.
    """

    __slots__ = ("_held", "address", "arguments", "error", "grid", "report", "report_address", "scratch")

    def __init__(self, size: int, scratch: int, messages: Sequence[tuple[str, str]]) -> None:
        self.grid: Grid = (1, 1, 1)
        self.error: BaseException | None = None
        self.arguments = ctypes.create_string_buffer(size)
        self.address = ctypes.addressof(self.arguments)
        self.report = ctypes.create_string_buffer(_REPORT.size)
        self.report_address = ctypes.addressof(self.report)
        held = ctypes.create_string_buffer(scratch + 64)
        # Vectors are stored at multiples of their size.
        self.scratch = -(-ctypes.addressof(held) // 64) * 64
        self._held: tuple[Any, ...] = (held,)
        if messages:
            self._print_to(messages)

    def _print_to(self, messages: Sequence[tuple[str, str]]) -> None:
        def printed(*value: int) -> None:
            try:
                if self.error is None:
                    print(_printed(messages, self.grid, *value))
            except BaseException as error:
                self.error = error

        callback = _Print(printed)
        struct.pack_into("<Q", self.report, 8 * _REPORTED, ctypes.cast(callback, ctypes.c_void_p).value or 0)
        self._held = (*self._held, callback)


# Pools of memory that no launch is using, by size of arguments and scratch.
_IDLE: defaultdict[tuple[int, int], list[_Memory]] = defaultdict(list)


def _printed(
    messages: Sequence[tuple[str, str]], grid: Grid, message: int, program: int, kind: int, bits: int, element: int
) -> str:
    """One value of a `tl.device_print`, as Triton's GPU back ends write it."""
    before = f"pid {_place(program, grid)}"
    prefix = messages[message][0]
    if kind == _NOTHING:
        return before + prefix
    if kind == _FLOAT:
        shown = f"{struct.unpack('<d', struct.pack('<q', bits))[0]:f}"
    elif kind == _POINTER:
        shown = f"0x{bits % 2**64:016x}"
    else:
        shown = str(bits % 2**64 if kind == _UNSIGNED else bits)
    return f"{before} idx ({element}){prefix}{shown}"


def _place(program: int, grid: Grid) -> Grid:
    x, y, _ = grid
    return program % x, program // x % y, program // (x * y)
