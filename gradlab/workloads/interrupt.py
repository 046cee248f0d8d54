"""Ctrl-C and SIGTERM, delayed to the end of a step so that all weights belong to one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# What a run saves for and ends: a terminal sends the first, a scheduler that takes its machine back the second.
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def delayed() -> Iterator[list[int]]:
    """Yields a list that gets the number of the signal; a second one stops at once, as it would have before."""
    told: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def on_signal(number: int, frame: object) -> None:
        told.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in SIGNALS:
        signal.signal(number, on_signal)
    try:
        yield told
    finally:
        restore()
