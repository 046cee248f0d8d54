"""torch's side of a profile: Kineto's trace on the common clock, time per op, and what the compiler did."""

import json
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from gradlab.autodiff.frameworks.side_torch import SIDE, backend
from gradlab.kernels.private.private_torch import dynamo_utils
from gradlab.profiling.ranges import ranges
from gradlab.profiling.ranges.label import Label
from gradlab.profiling.trace.step import MARKS, Counting

# Events of Kineto that are no event of the program: they name what it recorded.
_OWN = ("Trace", "Record Window End")


class TorchSink:
    """Ranges as `record_function`, which Kineto's trace shows."""

    def __init__(self) -> None:
        self._open = threading.local()

    def push(self, side: str, label: Label) -> None:
        shapes = ", ".join(f"{name}[{' '.join(map(str, shape))}]" for name, shape in label.shapes)
        range_ = torch.profiler.record_function(label.message, f"{shapes} {label.dtype}".strip() or None)
        range_.__enter__()
        if not hasattr(self._open, "stack"):
            self._open.stack = []
        self._open.stack.append(range_)

    def pop(self, side: str) -> None:
        self._open.stack.pop().__exit__(None, None, None)


sink = TorchSink


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` under torch.compile, which may break its graph: that is what a profile is to show."""
    return torch.compile(fn, backend=backend())


def both(fn: Callable[..., Any], wrt: Sequence[int]) -> Callable[..., Any]:
    """(arguments, cotangents) -> the vjp of `fn`, which always goes there first."""
    return SIDE.pullback(fn, wrt)


def trace(steps: Callable[[], Any], sink: Counting, program: Callable[[], str]) -> dict[str, Any]:
    """The steps under torch.profiler: Chrome events in microseconds since 1970, and rows of time.

    A row's seconds are its own: what is inside it and has a row itself is left out.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    with ranges.switched(sink), torch.profiler.profile(activities=activities, acc_events=True) as profile:
        taken = steps()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kineto.json"
        profile.export_chrome_trace(str(path))
        document = json.loads(path.read_text(encoding="utf-8"))
    base = document.get("baseTimeNanoseconds", 0) / 1e3
    events = [
        {**event, "ts": event["ts"] + base} if "ts" in event and event.get("ph") != "M" else event
        for event in document["traceEvents"]
        if event.get("cat") not in _OWN and event.get("name") not in _OWN
    ]
    rows = [
        {
            "name": row.key,
            "count": row.count,
            "seconds": row.self_cpu_time_total / 1e6,
            "device": row.self_device_time_total / 1e6,
        }
        for row in profile.key_averages()
        if row.key not in MARKS and not row.key.startswith("profiler::")
    ]
    return {"events": events, "rows": rows, "steps": taken}


class Compilation:
    """What torch.compile did while this was open: seconds a stage, graph breaks, recompilations."""

    def __enter__(self) -> "Compilation":
        dynamo = dynamo_utils()
        dynamo.clear_compilation_metrics()
        dynamo.counters.clear()
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def warm(self) -> None:
        """The first calls are over. A recompilation is one whenever it comes, so nothing is noted."""

    def found(self) -> dict[str, Any]:
        """{"stages": seconds by name, "breaks": [reason, count], "recompiled": [reason, count]}."""
        dynamo = dynamo_utils()
        metrics = dynamo.get_compilation_metrics()

        def seconds(name: str) -> float:
            return sum(getattr(m, f"{name}_cumulative_compile_time_us", None) or 0 for m in metrics) / 1e6

        whole, middle, inductor = seconds("dynamo"), seconds("aot_autograd"), seconds("inductor")
        back = seconds("backward")
        # Each stage includes the next: its own time is the difference. A backward is compiled separately, on its first
        # call.
        stages = {
            "dynamo": whole - middle,
            "AOTAutograd": max(0.0, middle + back - inductor),
            "inductor": inductor,
        }
        # What follows the guard that failed is a stack of torch's own files.
        why = (m.recompile_reason.partition("User stack trace")[0] for m in metrics if m.recompile_reason)
        reasons = Counter(map(_line, why))
        breaks = Counter[str]()
        for kind in ("graph_break", "unimplemented"):
            for text, count in dynamo.counters[kind].items():
                breaks[_break(text)] += count
        return {
            "stages": stages if metrics else {},
            "breaks": breaks.most_common(),
            "recompiled": reasons.most_common(),
        }


def copy_rate() -> float:
    """Bytes a second, read and written, of a copy of a gigabyte on the device; 0 on a CPU."""
    if not torch.cuda.is_available():
        return 0.0
    x = torch.randn(2**28, device="cuda")
    y = torch.empty_like(x)
    times = []
    for _ in range(8):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        y.copy_(x)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * x.numel() * x.element_size() / min(times)


def _line(text: str) -> str:
    return " ".join(text.split())


def _break(text: str) -> str:
    """A graph break in a line: its title, and the user's line where torch names it."""
    title, _, rest = text.partition("\n")
    code = next((line for line in rest.splitlines() if "code:" in line), "")
    where = code.strip().lstrip("# ").partition("code:")
    return _line(f"{title} ({where[2].strip()})" if code else title)
