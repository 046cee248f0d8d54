"""CUDA events around torch's calls: warm, replayed from a graph where they are short, and with an empty L2."""

import functools
from collections.abc import Mapping
from contextlib import suppress

import torch

from gradlab.autodiff.side import Side
from gradlab.profiling.bench.clock import Call, Timer

# Seconds below which launching may take longer than running: then a graph of the calls is what is timed.
SMALL = 1e-3
# Bytes written to empty L2: twice the largest there is (H200 50 MiB, B200 126 MiB).
FLUSH = 2**28


def timers(side: Side) -> Mapping[str, Timer]:
    """Warm and cold seconds, both the device's."""
    return {"warm": Events(), "cold": Cold()}


class Events:
    """Device seconds between two events around the calls, or around a graph that replays them."""

    def __init__(self) -> None:
        self._graphs: dict[Call, tuple[torch.cuda.CUDAGraph, int] | None] = {}

    def __call__(self, call: Call, repeat: int) -> float:
        graph = self._graph(call)
        if graph is None:
            return _between(lambda: [call() for _ in range(repeat)])
        replays = -(-repeat // graph[1])
        return _between(functools.partial(_replay, graph[0], replays)) * repeat / (replays * graph[1])

    def replayed(self, call: Call) -> bool:
        """Whether the call's time is that of a graph."""
        return self._graphs.get(call) is not None

    def _graph(self, call: Call, calls: int = 10) -> tuple[torch.cuda.CUDAGraph, int] | None:
        if call not in self._graphs:
            self._graphs[call] = None
            # What waits for the host, allocates on another stream or is a graph already cannot be captured.
            with suppress(RuntimeError):
                if _between(call) < SMALL:
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph):
                        for _ in range(calls):
                            call()
                    self._graphs[call] = graph, calls
        return self._graphs[call]


class Cold:
    """Device seconds of single calls, before each of which L2 was filled with something else."""

    def __init__(self) -> None:
        self._other = torch.empty(FLUSH // 4, dtype=torch.int32, device="cuda")

    def __call__(self, call: Call, repeat: int) -> float:
        seconds = 0.0
        for _ in range(repeat):
            self._other.zero_()
            seconds += _between(call)
        return seconds


def _replay(graph: torch.cuda.CUDAGraph, times: int) -> None:
    for _ in range(times):
        graph.replay()


def _between(work: Call) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
