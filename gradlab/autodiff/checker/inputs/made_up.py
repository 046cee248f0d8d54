"""Inputs that the check makes up: edges at the shapes that were given, and other shapes in a process of its own."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from gradlab.autodiff.checker.core.comparison import Promises, first_line
from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, OK, WRONG, Finding
from gradlab.autodiff.checker.inputs import isolated
from gradlab.autodiff.checker.inputs.edge import CHECK, LITTLE, Edges, Judged, judged
from gradlab.autodiff.checker.inputs.edges import Edge, edges, fits_others, reshaped
from gradlab.autodiff.checker.verdict.judge import CHECK as DERIVATIVE

EMPTY = "an empty first axis"

Look = Callable[[Promises], None]


class Spent(Protocol):
    """What a plan says of its budget."""

    def spent(self) -> float:
        """The part of it that is gone."""
        ...


class MadeUp:
    """One function at inputs that nobody gave.

    Attributes:
        most: edges that are looked at, and no other shapes then; all of them when None.
        skipped: what was left out because the budget is spent.
    """

    def __init__(self, p: Promises, plan: Spent, most: int | None = None) -> None:
        self.p, self.s, self.plan, self.most = p, p.probe.subject, plan, most
        self.skipped: list[str] = []

    def look(self, empty: Look, others: bool) -> None:
        """Every edge; one finding an input when all is well, each fault one of its own.

        Args:
            empty: looks at inputs whose first axis is empty.
            others: try other shapes too.
        """
        given = self.p.said(DERIVATIVE)
        off = {f.input: f.error for f in given if f.verdict == INCONCLUSIVE and f.error <= LITTLE}
        edge = Edges({f.input for f in given if f.verdict == WRONG}, off)
        self._along(itertools.islice(edges(self.s, self.p.rng), self.most), edge.take)
        if not others or self.most is not None:
            pass
        elif self.s.trusted or self.s.side.name == "jax":
            # Nothing of jax runs outside its arrays, whatever their shapes.
            self._along(reshaped(self.s, self.p.rng), edge.take)
            self._emptied(empty, self.p)
        elif isolated.possible():
            self._apart(edge, empty)
        else:
            self.p.note(f"{self.s.op}: no other shapes than the given: no process to try them in")
        for name, worst in edge.seen.items():
            if name not in edge.faults:
                self.p.say(CHECK, OK, f"{edge.count} edges", name, (), {"error": worst})
        if edge.loose:
            self.p.note(f"{self.s.op}: not smooth at, so not judged there: {'; '.join(edge.loose)}")

    def _emptied(self, empty: Look, p: Promises) -> None:
        if not fits_others(self.s):
            return
        try:
            empty(p)
        except Exception as error:
            p.note(f"{self.s.op}: with {EMPTY} the check raises {first_line(error, 90)}")

    def _along(
        self,
        each: Iterator[Edge],
        take: Callable[[Judged], list[Finding]],
        tell: Callable[[str], None] = lambda name: None,
    ) -> None:
        """Judge one edge after the other."""
        known = {f.input for f in self.p.said(DERIVATIVE) if f.verdict == WRONG}
        for name, other, values, alike in each:
            if self.plan.spent() >= 1:
                self.skipped.append("some edges")
                return
            tell(name)
            new = take(judged(name, other, values, alike, self.p.rng, known))
            self.p.findings += new
            known |= {f.input for f in new}

    def _apart(self, edge: Edges, empty: Look) -> None:
        """Inputs of shapes that nobody gave, in a process of its own: what dies there is said."""
        if not fits_others(self.s) and len(self.s.wrt) == len(self.s.leaves):
            # Nor labels, of which one might be ignored: there is nothing to try.
            return

        def work(send: Callable[[Any], None]) -> None:
            def take(one: Judged) -> list[Finding]:
                send(one)
                return [f for f in one.findings if f.verdict == WRONG]

            self._along(reshaped(self.s, self.p.rng), take, send)
            send(EMPTY)
            self._emptied(empty, Promises(self.p.probe, _Sent(send), _noting(send), self.p.rng, self.p.values))
            send(self.skipped)

        sent, died = isolated.apart(work)
        last = "the first of them"
        for one in sent:
            if isinstance(one, str):
                last = one
            elif isinstance(one, Judged):
                self.p.findings += edge.take(one)
            elif isinstance(one, Finding):
                self.p.add(one)
            elif isinstance(one, tuple):
                self.p.note(*one)
            else:
                self.skipped = one
        if died:
            self.p.note(f"{self.s.op}: the process that tried other shapes died at {last}: {died}")


class _Sent(list[Finding]):
    """A list of findings that sends what it is given."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        super().__init__()
        self._send = send

    def append(self, finding: Finding) -> None:
        """Keep and send it."""
        super().append(finding)
        self._send(finding)


def _noting(send: Callable[[Any], None]) -> Callable[[str], None]:
    return lambda text: send((text,))
