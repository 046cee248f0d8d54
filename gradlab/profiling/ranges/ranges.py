"""Named ranges over ops, rules and kernels: their labels, and the pass each belongs to.

`nvtx()` switches them on for NVTX; the profile's trace gives `switched` a sink of its own. A label has the op, the
kernel, the pass, the shapes, the dtype, the bytes and, where a Spec says them, the FLOPs.
"""

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from gradlab.kernels.runtime import ranges
from gradlab.profiling.ranges.cost import UNKNOWN, Cost, cost, dtype_of, named, shapes
from gradlab.profiling.ranges.label import PASSES, Label, Sink

VARIABLE = "GRADLAB_NVTX"


class _Called(NamedTuple):
    """A public op's call: its label, its cost, and the rules that were applied in it."""

    label: Label
    cost: Cost
    rules: list[None]


class _Thread(threading.local):
    """Where a thread is: the calls that are open in it, and the pass of the rule that is, 0 for none."""

    def __init__(self) -> None:
        self.calls: list[_Called] = []
        self.ops: list[str] = []
        self.order = 0


class Ranges:
    """The opener that launch gates and rules find in `gradlab.kernels.runtime.ranges`."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._at = _Thread()
        # The pass of a graph that autograd's engine is walking: its newest rule's, which the engine takes first.
        self._last_graph: tuple[int, int] = (-1, 0)

    @contextmanager
    def call(
        self, side: str, op: str, fn: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
    ) -> Iterator[None]:
        """The range of a call of a public op."""
        given = named(fn, args, options)
        known = cost(side, op, given)
        work = {key: values["forward"] for key, values in (("bytes", known.bytes), ("flops", known.flops))}
        label = Label(op, "", PASSES[self._at.order], shapes(given), dtype_of(given), **work)
        self._at.calls.append(_Called(label, known, []))
        try:
            with self._open(side, label):
                yield
        finally:
            self._at.calls.pop()

    def noted(self, ctx: Any) -> None:
        """Remember with a rule's context which pass it was applied in, and in which call."""
        call = self._at.calls[-1] if self._at.calls else None
        ctx.gradlab = (self._at.order, call)
        if call is not None:
            call.rules.append(None)

    @contextmanager
    def rule(self, side: str, rule: type, ctx: Any, cotangents: tuple[Any, ...]) -> Iterator[None]:
        """The backward of a rule: one pass further than where it was applied."""
        applied, call = getattr(ctx, "gradlab", (0, None))
        task = _graph_task()
        order = min(applied + 1, len(PASSES) - 1)
        if task == self._last_graph[0] != -1:
            # A rule of the forward that is traversed again for a second derivative belongs to the second pass.
            order = max(order, self._last_graph[1])
        self._last_graph = (task, order)
        given = {f"d{i}": dy for i, dy in enumerate(cotangents) if dy is not None}
        op = call.label.op if call is not None else stem(rule.__module__)
        known = UNKNOWN
        if call is not None and applied == 0 and order == 1 and len(call.rules) == 1:
            # The one rule of its op, with every gradient needed, does what the Spec says of backward.
            requested = sum(bool(needed) for needed in ctx.needs_input_grad)
            known = call.cost if requested == call.cost.gradients else UNKNOWN
        label = Label(
            op, "", PASSES[order], shapes(given), dtype_of(given), known.bytes["backward"], known.flops["backward"]
        )
        before, self._at.order = self._at.order, order
        self._at.ops.append(op)
        try:
            with self._open(side, label):
                yield
        finally:
            self._at.ops.pop()
            self._at.order = before

    @contextmanager
    def kernel(self, side: str, kernel: Any, arrays: list[Any], back: bool) -> Iterator[None]:
        """A launch: of the op around it, or on its own of the op whose file it stands in."""
        inside = self._at.ops[-1] if self._at.ops else self._at.calls[-1].label.op if self._at.calls else ""
        # An input that is absent has another tensor in its place, or one stands in two: it is one operand.
        once = list({(a.data_ptr(), tuple(a.shape), a.dtype): a for a in arrays}.values())
        label = Label(
            inside or stem(kernel.__module__),
            kernel.__name__.strip("_"),
            PASSES[self._at.order or int(back)],
            tuple((str(i), tuple(a.shape)) for i, a in enumerate(once)),
            dtype_of({"arrays": once}),
            sum(map(_bytes, once)),
            0,
        )
        with self._open(side, label):
            yield

    @contextmanager
    def _open(self, side: str, label: Label) -> Iterator[None]:
        self._sink.push(side, label)
        try:
            yield
        finally:
            self._sink.pop(side)


@contextmanager
def switched(sink: Sink | None) -> Iterator[None]:
    """Ranges go to `sink`, in every thread, or with None nowhere, until the context ends."""
    before = ranges.opener
    ranges.opener = None if sink is None else Ranges(sink)
    try:
        yield
    finally:
        ranges.opener = before


@contextmanager
def nvtx() -> Iterator[None]:
    """Ranges go to NVTX, to the domains `gradlab.torch` and `gradlab.jax`, until the context ends.

    Without a tool that listens nothing is opened.

    Raises:
        ModuleNotFoundError: the package nvtx is not installed.
    """
    with switched(sink()):
        yield


def off() -> Any:
    """No ranges, whatever switched them on: what timed code runs under."""
    return switched(None)


def from_environment() -> None:
    """Switch ranges on for the process where GRADLAB_NVTX asks for it; without the package, print a line."""
    if requested():
        try:
            found = sink()
        except ModuleNotFoundError as error:
            print(f"gradlab: {VARIABLE} is set: {error}", file=sys.stderr)
        else:
            ranges.opener = None if found is None else Ranges(found)


def requested() -> bool:
    """Whether the environment asks for ranges."""
    return os.environ.get(VARIABLE, "") not in ("", "0")


def stem(module: str) -> str:
    """The op whose file a module is: `gradlab.kernels.linear_triton` -> `linear`."""
    return module.rpartition(".")[2].rpartition("_")[0]


@functools.cache
def sink() -> Sink | None:
    """NVTX as a sink, or None when no tool listens.

    Raises:
        ModuleNotFoundError: the package nvtx is not installed.
    """
    from gradlab.profiling.ranges import nvtx

    return nvtx.sink()


def _graph_task() -> int:
    """The number of the walk over a graph that torch's engine is on in this thread; -1 for none."""
    if "torch" not in sys.modules:
        return -1
    from gradlab.kernels.private.private_torch import graph_task

    return graph_task()


def _bytes(array: Any) -> int:
    """The bytes that a tensor holds: of an expanded one, those that are there."""
    size_in_bytes = int(array.element_size())
    for size, stride in zip(array.shape, array.stride(), strict=True):
        size_in_bytes *= int(size) if stride or not size else 1
    return size_in_bytes
