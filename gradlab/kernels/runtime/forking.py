"""A lock that is free in a forked child, where the thread that held it does not exist."""

import os
import threading
from collections.abc import Callable
from typing import Any


class Lock:
    """A re-entrant lock. In a child forked while another thread held it, it is free.

    Args:
        put_back: called in such a child, to restore what that thread was changing.
    """

    def __init__(self, put_back: Callable[[], None] | None = None) -> None:
        self._lock = threading.RLock()
        self._put_back = put_back
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._free)

    def _free(self) -> None:
        # A lock that is free, or held by the thread that forked, stays as it is.
        if self._lock.acquire(blocking=False):
            self._lock.release()
            return
        self._lock = threading.RLock()
        if self._put_back is not None:
            self._put_back()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: Any) -> None:
        self._lock.release()
