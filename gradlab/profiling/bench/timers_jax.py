"""Times of jax's calls on CUDA: it shows no events, so a queue of calls is waited for, and cold is a difference."""

import functools
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from gradlab.autodiff.frameworks.side import Side
from gradlab.profiling.bench.clock import Call, Host, Timer

# Bytes written to empty L2: twice the largest there is (H200 50 MiB, B200 126 MiB).
FLUSH = 2**28
# Calls in a queue: the one wait at its end is spread over them.
QUEUE = 10


def timers(side: Side, uncaptured: str) -> Mapping[str, Timer]:
    """Warm seconds of calls queued back to back, and cold ones."""
    return {"warm": Host(side.wait), "cold": Cold(jax.jit(lambda: jnp.ones(FLUSH // 4, jnp.int32)))}


class Cold:
    """Seconds of calls, each behind a flush of L2, less those of the flushes: a device runs its queue in order."""

    def __init__(self, flush: Call) -> None:
        self._flush = flush
        jax.block_until_ready(flush())

    def __call__(self, call: Call, repeat: int) -> float:
        calls = repeat * QUEUE
        both = _queue(lambda: (self._flush(), call())[1], calls)
        return max(0.0, both - _queue(self._flush, calls)) / QUEUE


def _queue(call: Call, calls: int) -> float:
    start = time.perf_counter()
    jax.block_until_ready(functools.reduce(lambda _, __: call(), range(calls), None))
    return time.perf_counter() - start
