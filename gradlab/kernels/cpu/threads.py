"""Runs the programs of one launch on several threads, in chunks small enough for Ctrl-C to interrupt between two.

Which thread runs a program makes no difference to what it computes: the result has the same bits for any number of
threads.
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Seconds: the longest chunk, which bounds the delay of Ctrl-C, and the shortest, which bounds the scheduling overhead.
LONGEST = 0.02
SHORTEST = 50e-6


class Team:
    """The threads that work on one launch: the one that calls `run`, and helpers from a pool.

    Args:
        run: runs programs `begin` to `end - 1` on the calling thread; what it returns is None unless a program failed.
        begin, end: the programs.
        seconds: an estimate of one program's time, updated after each chunk.
        threads: how many threads may work at once.
    """

    def __init__(self, run: Callable[[int, int], Any], begin: int, end: int, seconds: float, threads: int = 1) -> None:
        self._run = run
        self._next, self._end = begin, end
        self._share = -(-(end - begin) // (4 * threads))
        self._threads = threads
        self._lock = threading.Lock()
        # Held while at least one helper works.
        self._helped = threading.Lock()
        self._helping = 0
        self._closed = False
        self._errors: list[BaseException] = []
        self._failures: list[tuple[int, Any]] = []
        self.seconds = seconds

    def run(self) -> Any:
        """Run every program; gives what the first program that failed returned, else None."""
        try:
            if self._threads > 1:
                self._call_helpers()
            self._work()
        finally:
            # Helpers write into the caller's tensors: do not return before they stop, not even on a second Ctrl-C.
            interrupt = None
            while True:
                try:
                    self._close()
                    break
                except KeyboardInterrupt as error:
                    interrupt = error
            if interrupt is not None:
                raise interrupt
        if self._errors:
            raise self._errors[0]
        return min(self._failures, key=lambda found: found[0])[1] if self._failures else None

    def _work(self) -> None:
        while True:
            with self._lock:
                begin = self._next
                if begin >= self._end or self._closed:
                    return
                end = self._next = min(self._end, begin + self._step())
            start = time.perf_counter()
            failure = self._run(begin, end)
            self.seconds = (time.perf_counter() - start) / (end - begin)
            if failure is not None:
                # Chunks are handed out in order and each is finished, so the first failure of all programs is found.
                self._failures.append((begin, failure))
                self._closed = True

    def _step(self) -> int:
        seconds = max(self.seconds, 1e-9)
        return max(1, int(SHORTEST / seconds), min(self._share, int(LONGEST / seconds)))

    def _call_helpers(self) -> None:
        try:
            for _ in range(self._threads - 1):
                _helpers().submit(self._help)
        except RuntimeError:
            # The interpreter is shutting down, or there are no more threads: the caller works alone.
            pass

    def _help(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._helping += 1
            if self._helping == 1:
                self._helped.acquire()
        try:
            self._work()
        except BaseException as error:
            self._errors.append(error)
            self._closed = True
        finally:
            with self._lock:
                self._helping -= 1
                if not self._helping:
                    self._helped.release()

    def _close(self) -> None:
        with self._lock:
            self._closed = True
        # A bare lock, not a Condition: an interrupt leaves it either taken or not, and nothing uses it afterwards.
        while self._helping:
            self._helped.acquire()


_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def _helpers() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="gradlab-cpu")
        return _pool


def _after_fork() -> None:
    # Threads do not survive a fork, and a lock that one of them held is never released: the child makes its own.
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
