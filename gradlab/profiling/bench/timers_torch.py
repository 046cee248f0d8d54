"""CUDA events around torch's calls: warm, replayed from a graph where they are short, and with an empty L2."""

import functools
from collections.abc import Mapping

import torch

from gradlab.autodiff.frameworks.side import Side
from gradlab.profiling.bench.clock import Call, Timer

# Seconds below which launching may take longer than running: then a graph of the calls is what is timed.
SMALL = 1e-3
# Bytes written to empty L2: twice the largest there is (H200 50 MiB, B200 126 MiB).
FLUSH = 2**28


def timers(side: Side, uncaptured: str) -> Mapping[str, Timer]:
    """Warm and cold seconds, both the device's."""
    return {"warm": Events(uncaptured), "cold": Cold()}


class Events:
    """Device seconds between two events around the calls, or around a graph that replays them.

    Attributes:
        uncaptured: why no call of this group can be captured into a graph, or nothing.
    """

    def __init__(self, uncaptured: str = "") -> None:
        self.uncaptured = uncaptured
        self._graphs: dict[Call, tuple[torch.cuda.CUDAGraph, int] | str] = {}

    def __call__(self, call: Call, repeat: int) -> float:
        graph = self._graph(call)
        if isinstance(graph, str):
            return _between(lambda: [call() for _ in range(repeat)])
        replays = -(-repeat // graph[1])
        return _between(functools.partial(_replay, graph[0], replays)) * repeat / (replays * graph[1])

    def replayed(self, call: Call) -> bool:
        """Whether the call's time is that of a graph."""
        return isinstance(self._graphs.get(call, ""), tuple)

    def launched(self, call: Call) -> str:
        """Why a short call's time is not that of a graph, and may be the host's; nothing for the others."""
        found = self._graphs.get(call, "")
        return found if isinstance(found, str) else ""

    def _graph(self, call: Call, calls: int = 10) -> tuple[torch.cuda.CUDAGraph, int] | str:
        if call not in self._graphs:
            self._graphs[call] = self._captured(call, calls) if _between(call) < SMALL else ""
        return self._graphs[call]

    def _captured(self, call: Call, calls: int) -> tuple[torch.cuda.CUDAGraph, int] | str:
        """The graph of so many calls, or why there is none."""
        # Looked for first: within a capture it would be an error that the capture does not survive.
        why = self.uncaptured or _spoilt or _waits(call)
        if why:
            return why
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                try:
                    for _ in range(calls):
                        call()
                except Exception as error:
                    # The capture has to end all the same.
                    why = _words(error)
        except RuntimeError as error:
            # It did not end: the allocator may still take itself for captured, so this process begins no other.
            torch.cuda.set_stream(stream)
            why = why or _words(error)
            _spoil(f"an earlier capture was invalidated: {why}")
        return why or (graph, calls)


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


# Why nothing is captured in this process any more.
_spoilt = ""


def _spoil(why: str) -> None:
    global _spoilt
    _spoilt = why


def _waits(call: Call) -> str:
    """What in a call makes the host wait for the device, as torch sees it; nothing where nothing does."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        return _words(error)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return ""


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


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
