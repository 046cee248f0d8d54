"""Whose Pallas programs arrays of a CPU run: a CPU's own, or another platform's, whose kernels somebody has to run."""

from collections.abc import Iterator
from contextlib import contextmanager

of_a_cpu = "cpu"


@contextmanager
def taking(platform: str) -> Iterator[None]:
    """Within it arrays of a CPU run the programs of another platform."""
    global of_a_cpu
    before, of_a_cpu = of_a_cpu, platform
    try:
        yield
    finally:
        of_a_cpu = before
