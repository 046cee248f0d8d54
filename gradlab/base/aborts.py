"""One line for a process that native code aborts, and the chatter of native code kept off the terminal.

A library that calls abort() has written a stack before, and no Python code runs after. So what native code writes goes
to a file first, of which all but known chatter is passed on, and SIGABRT is answered with one line about the rest.
"""

import contextlib
import ctypes
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

# Seconds between two looks at the file.
_EVERY = 0.3
# The first line of what absl writes before it aborts: F1130 00:27:37.119280 ...
_FATAL = re.compile(rb"^F\d{4} \d\d:", re.M)


@contextlib.contextmanager
def explained(explain: Callable[[str], tuple[str, int] | None], chatter: str) -> Iterator[None]:
    """Within it an abort ends the process with a line and an exit code; what Python prints goes where it went before.

    Args:
        explain: what native code wrote and was not passed on -> the line and the code; None where it does not know it,
            and the abort takes its course. It is called in the thread that aborts, as the last thing in this process.
        chatter: a regular expression; a line of native code in which it is found is not passed on.
    """
    with _Held(re.compile(chatter.encode())) as held:

        def aborted(number: int) -> None:
            held.pass_on()
            text = held.rest()
            known = explain(text.decode(errors="replace"))
            if known is None:
                held.write(text)
                return
            held.write(f"{known[0]}\n".encode())
            os._exit(known[1])

        # Python's own signal handlers run between two instructions of Python, of which there are none any more.
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(aborted)
        c = ctypes.CDLL(None)
        c.signal.restype, c.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
        before = c.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
        try:
            yield
        finally:
            c.signal(signal.SIGABRT, before)


class _Held:
    """stdout and stderr of native code in a file, passed on by a thread; Python's own stay as they were."""

    def __init__(self, chatter: re.Pattern[bytes]) -> None:
        self._chatter, self._at, self._passing = chatter, 0, threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._pass_on_until_stopped, daemon=True)

    def __enter__(self) -> "_Held":
        sys.stdout.flush()
        sys.stderr.flush()
        self._file = tempfile.TemporaryFile()
        self._before = [os.dup(fd) for fd in (1, 2)]
        streams = [os.fdopen(os.dup(fd), "w", buffering=1, errors="backslashreplace") for fd in self._before]
        self._streams = contextlib.ExitStack()
        self._streams.enter_context(contextlib.redirect_stdout(streams[0]))
        self._streams.enter_context(contextlib.redirect_stderr(streams[1]))
        for stream in streams:
            self._streams.callback(stream.close)
        for fd in (1, 2):
            os.dup2(self._file.fileno(), fd)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        for fd, before in zip((1, 2), self._before, strict=True):
            os.dup2(before, fd)
        self.pass_on()
        self.write(self.rest())
        self._streams.close()
        self._file.close()
        for fd in self._before:
            os.close(fd)

    def rest(self) -> bytes:
        """What was not passed on yet."""
        # Writers share the file's offset: it must not be moved.
        return os.pread(self._file.fileno(), 1 << 20, self._at)

    def write(self, text: bytes) -> None:
        """Write to what was stderr."""
        os.write(self._before[1], text)

    def pass_on(self) -> None:
        """Pass on the full lines that came since, up to those of an abort."""
        with self._passing:
            text = self.rest()
            fatal = _FATAL.search(text)
            text = text[: fatal.start() if fatal else text.rfind(b"\n") + 1]
            self._at += len(text)
            self.write(b"".join(line for line in text.splitlines(keepends=True) if not self._chatter.search(line)))

    def _pass_on_until_stopped(self) -> None:
        while not self._stop.wait(_EVERY):
            self.pass_on()
