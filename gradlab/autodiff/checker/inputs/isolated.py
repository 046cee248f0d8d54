"""Work that may kill the process, in a process of its own."""

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

# Seconds after which a child that says nothing is killed.
PATIENCE = 60.0


def possible() -> bool:
    """Whether a process can be forked and torch, if it is here, has no device whose state a fork would break."""
    torch = sys.modules.get("torch")
    return hasattr(os, "fork") and (torch is None or not torch.cuda.is_initialized())


def apart(work: Callable[[Callable[[Any], None]], None], patience: float = PATIENCE) -> tuple[list[Any], str]:
    """Call `work` in a fork of this process; what it sent, and how it died, "" when it did not.

    Args:
        work: takes a function that sends what can be pickled to this process.
        patience: seconds without a word after which it is killed.
    """
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        # jax warns that its threads do not live on in a fork, where nobody calls it.
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
        return sent, f"it said nothing for {patience:g} s"
    if os.WIFSIGNALED(status):
        return sent, f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return sent, "" if os.WEXITSTATUS(status) == 0 else f"it exited with {os.WEXITSTATUS(status)}"


def _child(work: Callable[[Callable[[Any], None]], None], read: int, write: int) -> None:
    """Never returns, and runs nothing that the parent registered for its own end."""
    code = 1
    try:
        os.close(read)
        faulthandler.disable()
        torch = sys.modules.get("torch")
        if torch is not None:
            # Threads are not forked: a pool that waits for its own would wait for ever.
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
    """All messages until the other end closes; whether it fell silent before."""
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
    """The whole messages; one that a death cut short is dropped."""
    found = []
    while len(data) >= 8:
        size = int.from_bytes(data[:8], "little")
        if len(data) < 8 + size:
            break
        found.append(pickle.loads(data[8 : 8 + size]))
        data = data[8 + size :]
    return found
