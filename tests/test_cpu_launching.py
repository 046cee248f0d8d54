"""Launches of compiled kernels: arguments in memory, programs over threads, failures, Ctrl-C, forks, files."""

import ctypes
import dataclasses
import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("llvmlite")

from gradlab.kernels.cpu import launching, machine, slots, threads
from gradlab.kernels.cpu.binary import Binary, Broken
from gradlab.kernels.cpu.launching import Kernel

ROOT = Path(__file__).parents[1]
OWNER = "ab" * 32

# Arguments: out, pause in microseconds, the first program that fails. Program p writes p + 1 to out[p].
BODY = """
declare i32 @usleep(i32)
define i64 @run(ptr %args, i64 %begin, i64 %end, i32 %gx, i32 %gy, i32 %gz, ptr %scratch, ptr %report) {
entry:
  %out = load ptr, ptr %args
  %at1 = getelementptr i64, ptr %args, i64 1
  %pause = load i32, ptr %at1
  %at2 = getelementptr i64, ptr %args, i64 2
  %bad = load i64, ptr %at2
  br label %head
head:
  %p = phi i64 [ %begin, %entry ], [ %next, %write ]
  store volatile i64 %p, ptr %scratch
  %sleeps = icmp ne i32 %pause, 0
  br i1 %sleeps, label %sleep, label %awake
sleep:
  %ignored = call i32 @usleep(i32 %pause)
  br label %awake
awake:
  %fails = icmp sge i64 %p, %bad
  br i1 %fails, label %fail, label %write
fail:
  store i64 1, ptr %report
  %at = getelementptr i64, ptr %report, i64 1
  store i64 %p, ptr %at
  ret i64 1
write:
  %same = load volatile i64, ptr %scratch
  %slot = getelementptr i64, ptr %out, i64 %same
  %next = add i64 %p, 1
  store i64 %next, ptr %slot
  %more = icmp slt i64 %next, %end
  br i1 %more, label %head, label %done
done:
  ret i64 0
}
"""
MESSAGES = (("not this", "kernel.py:1"), ("x is positive", "kernel.py:7"))
NEVER = 2**62


def binary(**changes):
    code = machine.object_code(BODY, machine.host())
    made = Binary("count", "run", (("out", "*i64"), ("pause", "i32"), ("bad", "i64")), 8, MESSAGES, (0,), False, code)
    return dataclasses.replace(made, **changes)


@pytest.fixture(scope="module")
def count():
    return binary()


def memory(programs):
    held = (ctypes.c_int64 * programs)()
    return held, ctypes.addressof(held)


@pytest.mark.parametrize("among", [1, 2, 5])
@pytest.mark.parametrize("grid", [(1, 1, 1), (1000, 1, 1), (7, 5, 3)])
def test_every_program_runs_once_on_any_number_of_threads(count, among, grid):
    kernel = Kernel(count, lambda: among)
    programs = grid[0] * grid[1] * grid[2]
    for pause in (0, 20):
        held, at = memory(programs)
        kernel(grid, (at, pause, NEVER))
        assert list(held) == list(range(1, programs + 1))


def test_helpers_take_part_in_a_long_launch_and_not_in_a_short_one(count, monkeypatch):
    seen = set()
    real = Kernel._run
    monkeypatch.setattr(Kernel, "_run", lambda *args: (seen.add(threading.get_ident()), real(*args))[1])
    kernel = Kernel(count, lambda: 3)
    held, at = memory(100)
    kernel((100, 1, 1), (at, 1000, NEVER))
    assert len(seen) > 1
    kernel((100, 1, 1), (at, 0, NEVER))
    seen.clear()
    kernel((4, 1, 1), (at, 0, NEVER))
    assert seen == {threading.get_ident()}
    del held


def test_an_ordered_kernel_stays_on_the_callers_thread_in_program_order(monkeypatch):
    ranges, real = [], Kernel._run

    def noted(self, memory, arguments, begin, end, grid):
        ranges.append((threading.get_ident(), begin, end))
        return real(self, memory, arguments, begin, end, grid)

    monkeypatch.setattr(Kernel, "_run", noted)
    held, at = memory(50)
    Kernel(binary(ordered=True), lambda: 4)((50, 1, 1), (at, 1000, NEVER))
    assert {who for who, _, _ in ranges} == {threading.get_ident()}
    assert len(ranges) > 2
    assert [begin for _, begin, _ in ranges] == [0] + [end for _, _, end in ranges[:-1]]
    assert list(held) == list(range(1, 51))


def test_python_threads_launch_at_once(count):
    kernel = Kernel(count, lambda: 2)
    held = [memory(200) for _ in range(4)]
    workers = [threading.Thread(target=kernel, args=((200, 1, 1), (at, 50, NEVER))) for _, at in held]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for block, _ in held:
        assert list(block) == list(range(1, 201))


@pytest.mark.parametrize("among", [1, 4])
@pytest.mark.parametrize("pause", [0, 500])
def test_the_first_program_that_fails_is_named(count, among, pause):
    kernel = Kernel(count, lambda: among)
    held, at = memory(60)
    with pytest.raises(AssertionError, match=r"^kernel.py:7: x is positive \(program \(2, 1, 2\) of count\)$"):
        kernel((5, 4, 3), (at, pause, 47))
    assert list(held)[:47] == list(range(1, 48))


def test_the_first_of_several_failures_is_the_one_named():
    def run(begin, end):
        time.sleep(0.1 if begin == 0 else 0.01)
        return begin + 1

    assert threads.Team(run, 0, 4, 0.01, 4).run() == 1


def test_what_a_helper_raises_reaches_the_caller():
    caller = threading.get_ident()

    def run(begin, end):
        time.sleep(0.001)
        if threading.get_ident() != caller:
            raise MemoryError("no scratch")

    with pytest.raises(MemoryError, match="no scratch"):
        threads.Team(run, 0, 1000, 0.001, 3).run()


def test_a_grid_without_programs_runs_nothing(count):
    Kernel(count)((3, 0, 2), (0, 0, 0))


@pytest.mark.parametrize(
    ("grid", "error", "said"),
    [
        ((-1, 1, 1), ValueError, r"count: the grid is \(-1, 1, 1\), wanted no negative number of programs"),
        ((-1, -1, 1), ValueError, "no negative number"),
        ((2**31, 1, 1), ValueError, "wanted at most 2147483647 programs along an axis"),
        ((2**31 - 1, 2**31 - 1, 4), ValueError, "2\\*\\*63 - 1 in all"),
        ((1.0, 1, 1), TypeError, "wanted integers"),
    ],
)
def test_grids_that_are_refused(count, grid, error, said):
    with pytest.raises(error, match=said):
        Kernel(count)(grid, (0, 0, 0))


def test_numpy_integers_are_a_grid(count):
    numpy = pytest.importorskip("numpy")
    held, at = memory(6)
    Kernel(count)((numpy.int64(6), 1, 1), (at, 0, NEVER))
    assert list(held) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("*f32", 2**63 + 8, struct.pack("<Q", 2**63 + 8)),
        ("*f32", None, bytes(8)),
        ("i64", -1, b"\xff" * 8),
        ("i64", 2**64 - 1, b"\xff" * 8),
        ("i32", -2, b"\xfe\xff\xff\xff" + bytes(4)),
        ("i32", 2**32 - 2, b"\xfe\xff\xff\xff" + bytes(4)),
        ("i16", -2, b"\xfe\xff" + bytes(6)),
        ("i8", 255, b"\xff" + bytes(7)),
        ("i1", 7, b"\x01" + bytes(7)),
        ("i1", 0, bytes(8)),
        ("f64", 0.1, struct.pack("<d", 0.1)),
        ("f32", 3, struct.pack("<f4x", 3.0)),
        ("f32", 1e39, struct.pack("<f4x", float("inf"))),
        ("f16", 1.5, struct.pack("<e6x", 1.5)),
        ("f16", -1e6, struct.pack("<e6x", float("-inf"))),
        ("bf16", 1.0 + 2**-9, b"\x80\x3f" + bytes(6)),
    ],
)
def test_an_argument_in_its_slot(kind, value, expected):
    block = ctypes.create_string_buffer(b"\xee" * 16, 16)
    slots.Slots("k", [("first", "i64"), ("x", kind)]).write(block, (1, value))
    assert block.raw[8:] == expected


@pytest.mark.parametrize(
    ("kind", "value", "error", "said"),
    [
        ("i32", 2**32, ValueError, "k: x is 4294967296, wanted an integer of 32 bits"),
        ("i64", 2**64, ValueError, "wanted an integer of 64 bits"),
        ("i32", 1.5, TypeError, "k: x is 1.5, wanted an integer of 32 bits"),
        ("f32", "one", TypeError, "k: x is 'one', wanted a number"),
        ("*f32", -8, ValueError, "k: x is -8, wanted an address"),
        ("*f32", 0.5, TypeError, "wanted an address"),
    ],
)
def test_an_argument_that_is_refused(kind, value, error, said):
    with pytest.raises(error, match=said):
        slots.Slots("k", [("x", kind)]).write(ctypes.create_string_buffer(8), (value,))


def test_a_wrong_number_of_arguments_is_refused(count):
    with pytest.raises(TypeError, match="count: 2 arguments were given, wanted 3"):
        Kernel(count)((1, 1, 1), (0, 0))


def test_a_file_opens_as_it_was_sealed(count):
    sealed = count.seal(OWNER)
    assert Binary.unseal(sealed, OWNER) == count
    assert sealed.startswith(b"\x7fELF"), "tools that read object files read this one"


@pytest.mark.parametrize("harm", ["empty", "short", "bit in code", "bit in facts", "text", "other kernel", "other CPU"])
def test_a_file_that_is_not_whole_or_not_ours_does_not_open(count, harm):
    sealed, owner = count.seal(OWNER), OWNER
    if harm == "empty":
        sealed = b""
    elif harm == "short":
        sealed = sealed[:-100]
    elif harm.startswith("bit"):
        at = 200 if harm == "bit in code" else len(sealed) - 120
        sealed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
    elif harm == "text":
        sealed = b"not an object file" * 100
    elif harm == "other kernel":
        owner = "cd" * 32
    else:
        sealed = count.seal(OWNER, dataclasses.replace(machine.host(), features="+other"))
    with pytest.raises(Broken):
        Binary.unseal(sealed, owner)


def test_memory_of_a_launch_is_used_again(count, monkeypatch):
    made, real = [], launching._Memory
    monkeypatch.setattr(launching, "_Memory", lambda *args: (made.append(args), real(*args))[1])
    monkeypatch.setattr(launching, "_IDLE", type(launching._IDLE)(list))
    kernel = Kernel(count, lambda: 1)
    held, at = memory(4)
    for _ in range(10):
        kernel((4, 1, 1), (at, 0, NEVER))
    assert len(made) <= 2
    assert list(held) == [1, 2, 3, 4]


def script(body):
    """Run a script that can make the kernel of this file, and give what it printed."""
    head = "import os, signal, sys, threading, time\nimport test_cpu_launching as t\nfrom test_cpu_launching import *\n"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(body)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("among", [1, 3])
def test_ctrl_c_stops_a_long_launch_and_nothing_runs_after_it(among):
    said = script(f"""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        kernel = Kernel(binary(), lambda: {among})
        held, at = memory(5000)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        start = time.perf_counter()
        try:
            kernel((5000, 1, 1), (at, 10000, NEVER))
            print("finished")
        except KeyboardInterrupt:
            took = time.perf_counter() - start
            written = list(held)
            time.sleep(0.1)
            print("interrupted", took < 5, any(written), written == list(held))
        kernel((50, 1, 1), (at, 0, NEVER))
        print(list(held)[:50] == list(range(1, 51)))
    """)
    assert said.split() == ["interrupted", "True", "True", "True", "True"]


def test_a_fork_launches_with_helpers_of_its_own():
    said = script("""
        import warnings
        warnings.simplefilter("ignore")
        kernel = Kernel(binary(), lambda: 3)

        def launch():
            held, at = memory(100)
            kernel((100, 1, 1), (at, 300, NEVER))
            return list(held) == list(range(1, 101))

        # The pool's lock is held across the fork, as by a thread that is making the pool.
        print(launch())
        threads._pool_lock.acquire()
        child = os.fork()
        if not child:
            signal.alarm(20)
            os._exit(0 if launch() and threads._pool is not None else 1)
        threads._pool_lock.release()
        print(os.waitpid(child, 0)[1], launch())
    """)
    assert said.split() == ["True", "0", "True"]


def test_a_launch_at_the_interpreters_end_does_without_helpers():
    said = script("""
        import atexit
        kernel = Kernel(binary(), lambda: 3)

        def last():
            held, at = memory(100)
            kernel((100, 1, 1), (at, 300, NEVER))
            print(list(held) == list(range(1, 101)))

        atexit.register(last)
        last()
    """)
    assert said.split() == ["True", "True"]


PRINTS = """
define i64 @run(ptr %args, i64 %begin, i64 %end, i32 %gx, i32 %gy, i32 %gz, ptr %scratch, ptr %report) {
entry:
  %at = getelementptr i64, ptr %report, i64 8
  %printer = load ptr, ptr %at
  br label %head
head:
  %p = phi i64 [ %begin, %entry ], [ %next, %head ]
  call void %printer(i64 1, i64 %p, i64 1, i64 4609434218613702656, i64 3)
  call void %printer(i64 1, i64 %p, i64 0, i64 -1, i64 0)
  call void %printer(i64 1, i64 %p, i64 3, i64 -1, i64 0)
  call void %printer(i64 1, i64 %p, i64 2, i64 255, i64 0)
  call void %printer(i64 0, i64 %p, i64 -1, i64 0, i64 0)
  %next = add i64 %p, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %head, label %done
done:
  ret i64 0
}
"""


@pytest.fixture(scope="module")
def prints():
    said = ((" here", "kernel.py:1"), (" x: ", "kernel.py:2"))
    return Binary("prints", "run", (), 0, said, (), True, machine.object_code(PRINTS, machine.host()))


def test_values_are_printed_in_program_order_with_their_place(prints, capsys):
    Kernel(prints)((2, 2, 1), ())
    expected = []
    for place in ("(0, 0, 0)", "(1, 0, 0)", "(0, 1, 0)", "(1, 1, 0)"):
        values = ("(3) x: 1.500000", "(0) x: -1", f"(0) x: {2**64 - 1}", "(0) x: 0x00000000000000ff")
        expected += [f"pid {place} idx {value}" for value in values] + [f"pid {place} here"]
    assert capsys.readouterr().out.splitlines() == expected


def test_ctrl_c_is_not_lost_in_a_print(prints, monkeypatch):
    kernel = Kernel(prints)
    monkeypatch.setattr("builtins.print", lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        kernel((3, 1, 1), ())
