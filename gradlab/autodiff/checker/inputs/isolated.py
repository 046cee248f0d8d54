"""Runs work that may crash in a forked process."""

import faulthandler
import os
import pickle
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

# Seconds after which a child that sends nothing is killed.
PATIENCE = 60.0


def possible() -> bool:
    """Whether this process can be forked: no CUDA state of torch would break in the child."""
    torch = sys.modules.get("torch")
    return hasattr(os, "fork") and (torch is None or not torch.cuda.is_initialized())


def run_isolated(work: Callable[[Callable[[Any], None]], None], patience: float = PATIENCE) -> tuple[list[Any], str]:
    """Call `work` in a fork of this process: the values it sent, and how it died ("" if it did not).

    Args:
        work: takes a function that sends a picklable value to this process.
        patience: seconds without a message after which it is killed.
    """
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # jax warns that its threads do not survive a fork; the child does not use jax.
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        _child(work, read, write)
    os.close(write)
    sent, silent = _received(read, patience)
    os.close(read)
    if silent:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if silent:
        return sent, f"it sent nothing for {patience:g} s"
    if os.WIFSIGNALED(status):
        return sent, f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return sent, "" if os.WEXITSTATUS(status) == 0 else f"it exited with {os.WEXITSTATUS(status)}"


def _child(work: Callable[[Callable[[Any], None]], None], read: int, write: int) -> None:
    """Run in the child: never returns, and runs none of the parent's exit handlers."""
    code = 1
    try:
        os.close(read)
        faulthandler.disable()
        torch = sys.modules.get("torch")
        if torch is not None:
            # Threads are not forked: a thread pool would wait for them forever.
            torch.set_num_threads(1)

        def send(value: Any) -> None:
            data = pickle.dumps(value)
            os.write(write, len(data).to_bytes(8, "little"))
            while data:
                data = data[os.write(write, data) :]

        work(send)
        code = 0
    finally:
        os._exit(code)


def _received(read: int, patience: float) -> tuple[list[Any], bool]:
    """All messages until the child closes the pipe; whether it timed out."""
    data, last = b"", time.monotonic()
    while True:
        ready, _, _ = select.select([read], [], [], max(0.0, last + patience - time.monotonic()))
        if not ready:
            return _messages(data), True
        part = os.read(read, 1 << 16)
        if not part:
            return _messages(data), False
        data, last = data + part, time.monotonic()


def _messages(data: bytes) -> list[Any]:
    """The complete messages; one cut short by a crash is dropped."""
    found = []
    while len(data) >= 8:
        size = int.from_bytes(data[:8], "little")
        if len(data) < 8 + size:
            break
        found.append(pickle.loads(data[8 : 8 + size]))
        data = data[8 + size :]
    return found
