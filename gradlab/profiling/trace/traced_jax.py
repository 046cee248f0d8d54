"""jax's side of a profile: XLA's trace on the common clock, time per operation, and what was compiled."""

import logging
import re
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
from jax.profiler import ProfileData

from gradlab.autodiff.frameworks.side import as_tuple
from gradlab.profiling.ranges import ranges
from gradlab.profiling.ranges.label import PASSES, Label
from gradlab.profiling.trace.step import MARKS, Counting

# jax's monitoring events of compilation -> stage.
STAGES = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
# Events of the thread pools themselves.
_NOISE = ("ThreadpoolListener::", "end: ")


class JaxSink:
    """Ranges as `TraceAnnotation`, which XLA's trace shows."""

    def __init__(self) -> None:
        self._open = threading.local()

    def push(self, side: str, label: Label) -> None:
        shapes = ", ".join(f"{name}[{' '.join(map(str, shape))}]" for name, shape in label.shapes)
        range_ = jax.profiler.TraceAnnotation(label.message, **({"shapes": shapes} if shapes else {}))
        range_.__enter__()
        if not hasattr(self._open, "stack"):
            self._open.stack = []
        self._open.stack.append(range_)

    def pop(self, side: str) -> None:
        self._open.stack.pop().__exit__(None, None, None)


sink = JaxSink


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` under jax.jit."""
    return jax.jit(fn)


def both(fn: Callable[..., Any], wrt: Sequence[int]) -> Callable[..., Any]:
    """(arguments, cotangents) -> what `fn` gives, and its vjp: without the former XLA leaves out the forward."""

    def forward_and_backward(args: Sequence[Any], cotangents: Sequence[Any]) -> Any:
        def of_wrt(*moving: Any) -> Any:
            full = list(args)
            for i, value in zip(wrt, moving, strict=True):
                full[i] = value
            return as_tuple(fn(*full))

        y, back = jax.vjp(of_wrt, *(args[i] for i in wrt))
        return y, back(tuple(cotangents))

    return forward_and_backward


def trace(steps: Callable[[], Any], sink: Counting, program: Callable[[], str]) -> dict[str, Any]:
    """The steps under jax.profiler: Chrome events in microseconds since 1970, and rows of time.

    A row's seconds are its own: what is inside it and has a row itself is left out.
    """
    options = jax.profiler.ProfileOptions()
    # Every Python call would be an event: a million of them push out everything else.
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options), ranges.switched(sink):
            taken = steps()
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = ProfileData.from_file(str(path))
        planes = [(plane.name, dict(plane.stats), _lines(plane)) for plane in data.planes]
    start = next(stats["profile_start_time"] for name, stats, _ in planes if name == "Task Environment")
    places = names(program())
    opened = {label.message for label in sink.counts} - set(MARKS)
    events: list[dict[str, Any]] = []
    spent: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for i, (plane, _, lines) in enumerate(planes):
        pid = 10_000_000 + i
        if lines:
            events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": f"jax {plane}"}})
        for j, (line, found) in enumerate(lines):
            events.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": j, "args": {"name": line}})
            for name, begin, length, stats in found:
                events.append(
                    {
                        "ph": "X",
                        "name": name,
                        "cat": "xla" if "hlo_op" in stats else "host",
                        "pid": pid,
                        "tid": j,
                        "ts": (start + begin) / 1e3,
                        "dur": length / 1e3,
                        "args": {key: str(value) for key, value in stats.items() if not key.startswith("_")},
                    }
                )
            shown = [e for e in found if "hlo_op" in e[3] or e[0] in opened]
            for name, own, stats in self_times(shown):
                spent[_place(name, stats, places), plane.startswith("/device:")].append(own / 1e9)
    rows = [
        {"name": name, "count": len(t), "seconds": 0.0 if device else sum(t), "device": sum(t) if device else 0.0}
        for (name, device), t in spent.items()
    ]
    return {"events": events, "rows": rows, "steps": taken}


def _lines(plane: Any) -> list[tuple[str, list[tuple[str, float, float, dict[str, Any]]]]]:
    """The threads of a plane with events: name, and (name, start, nanoseconds, stats) of each."""
    found = []
    for line in plane.lines:
        events = [(e.name, e.start_ns, e.duration_ns, dict(e.stats)) for e in line.events]
        events = [e for e in events if e[2] > 0 and not e[0].startswith(_NOISE)]
        if events:
            found.append((line.name, events))
    return found


def self_times(events: list[tuple[str, float, float, dict[str, Any]]]) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """(name, nanoseconds of its own, stats) of each event of a thread: those inside it are taken off."""
    open_: list[list[Any]] = []
    for name, begin, length, stats in sorted(events, key=lambda e: (e[1], -e[2])):
        while open_ and begin >= open_[-1][1]:
            done = open_.pop()
            yield done[0], done[2], done[3]
        if open_:
            open_[-1][2] -= length
        open_.append([name, begin + length, length, stats])
    while open_:
        done = open_.pop()
        yield done[0], done[2], done[3]


def names(program: str) -> dict[str, str]:
    """Each operation of a compiled program that stands in a kernel's scope: the kernel and its pass."""
    found = {}
    for line in program.splitlines():
        match = re.match(r'\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"', line)
        kernel = match and re.search(r"gradlab_(\w+)", match[2])
        if match and kernel:
            # jax writes a pass of its own around the scope: transpose(jvp(linear)), and once more for the second.
            direction = PASSES[min(match[2].count("transpose("), len(PASSES) - 1)]
            found[match[1]] = f"{kernel[1]} {direction}"
    return found


def _place(name: str, stats: dict[str, Any], places: dict[str, str]) -> str:
    """What an event is counted as: its kernel, or in an eager call the program it belongs to."""
    if "hlo_op" not in stats:
        return name
    place = places.get(str(stats["hlo_op"]))
    return place or (name if places else f"{str(stats.get('hlo_module', '')).removeprefix('jit_')}: {name}")


class Compilation(logging.Handler):
    """What jax traced, lowered and compiled while this was open, and what it compiled again after the warm-up."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._seconds: dict[str, float] = {}
        self._again: Counter[str] = Counter()
        self._compiled = 0
        self._warm = False

    def __enter__(self) -> "Compilation":
        jax.monitoring.register_event_duration_secs_listener(self._on_event)
        logging.getLogger("jax").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("jax").removeHandler(self)

    def warm(self) -> None:
        """The first calls are over: what is traced from here on is a recompilation, and jax logs its reason."""
        self._warm = True
        jax.config.update("jax_explain_cache_misses", True)

    def emit(self, record: logging.LogRecord) -> None:
        """A message of jax: why it traced again, with the file's name in place of its path; the reason comes last."""
        if self._warm:
            message = re.sub(r"(?:/[^\s/:]+)+/([^\s/:]+:\d)", r"\1", record.getMessage())
            self._again[" ".join(message.split())] += 1

    def _on_event(self, event: str, duration_secs: float, **_: Any) -> None:
        if event in STAGES:
            self._seconds[STAGES[event]] = self._seconds.get(STAGES[event], 0.0) + duration_secs
            self._compiled += int(self._warm and STAGES[event] == "compile")

    def found(self) -> dict[str, Any]:
        """{"stages": seconds by name, "breaks": [], "recompiled": [reason, count]}; jax has no graph to break."""
        again = self._again.most_common()
        if self._compiled and not again:
            again = [("compiled after the warm-up; jax gave no reason", self._compiled)]
        return {"stages": self._seconds, "breaks": [], "recompiled": again if self._compiled else []}


def copy_rate() -> float:
    """Bytes a second, read and written, of a copy of a gigabyte on the device; 0 on a CPU."""
    if jax.default_backend() != "gpu":
        return 0.0
    x = jax.random.normal(jax.random.key(0), (2**28,), jnp.float32)
    # A negation reads and writes as a copy does; a copy itself XLA may leave out.
    negated = jax.jit(jnp.negative)
    jax.block_until_ready(negated(x))
    times = []
    for _ in range(8):
        start = time.perf_counter()
        jax.block_until_ready(negated(x))
        times.append(time.perf_counter() - start)
    return 2 * x.nbytes / min(times)
