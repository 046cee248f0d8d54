"""torch's peak: on CUDA its allocator tracks it, on a CPU its profiler records every allocation and release."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gradlab.autodiff.frameworks.side import Side


def peak_bytes(side: Side, call: Callable[[], Any]) -> int | None:
    """Bytes at most in use beyond those before the call."""
    if side.device() == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        side.wait(call())
        return torch.cuda.max_memory_allocated() - before
    # torch 2.11 warns of events that a second cycle would clear; there is one.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        value = call()
    del value
    blocks = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for block in sorted(blocks, key=lambda e: e.start_ns()):
        now += block.nbytes()
        most = max(most, now)
    return most
