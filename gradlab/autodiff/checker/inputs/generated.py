"""Checks a function at generated inputs: edge values at the given shapes, other shapes in a forked process."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from gradlab.autodiff.checker.core.comparison import Comparison, first_line
from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, OK, WRONG, Finding
from gradlab.autodiff.checker.inputs import isolated
from gradlab.autodiff.checker.inputs.edge_inputs import Edge, edges, fits_others, reshaped
from gradlab.autodiff.checker.inputs.edge_verdict import CHECK, LITTLE, EdgeSummary, EdgeVerdict, judge_edge
from gradlab.autodiff.checker.verdict.first_derivative import CHECK as DERIVATIVE

EMPTY = "an empty first axis"

EmptyCheck = Callable[[Comparison], None]


class Budgeted(Protocol):
    """A plan with a budget."""

    def spent(self) -> float:
        """The share of it that is spent."""
        ...


class GeneratedInputs:
    """One function at generated inputs.

    Attributes:
        most: the most edges tried, without other shapes; all edges and other shapes when None.
        skipped: what was left out because the budget was spent.
    """

    def __init__(self, cmp: Comparison, plan: Budgeted, most: int | None = None) -> None:
        self.cmp, self.s, self.plan, self.most = cmp, cmp.probe.subject, plan, most
        self.skipped: list[str] = []

    def check(self, empty: EmptyCheck, others: bool) -> None:
        """Try every edge: one finding for each input that is ok, and one for each error.

        Args:
            empty: checks inputs whose first axis is empty.
            others: whether to try other shapes too.
        """
        given = self.cmp.findings_of(DERIVATIVE)
        off = {f.input: f.error for f in given if f.verdict == INCONCLUSIVE and f.error <= LITTLE}
        summary = EdgeSummary({f.input for f in given if f.verdict == WRONG}, off)
        self._judge_each(itertools.islice(edges(self.s, self.cmp.rng), self.most), summary.add)
        if not others or self.most is not None:
            pass
        elif self.s.trusted or self.s.side.name == "jax":
            # jax code cannot access memory outside its arrays, whatever their shapes.
            self._judge_each(reshaped(self.s, self.cmp.rng), summary.add)
            self._check_empty(empty, self.cmp)
        elif isolated.possible():
            self._judge_isolated(summary, empty)
        else:
            self.cmp.note(f"{self.s.op}: other shapes are not tried: this process cannot be forked")
        for name, worst in summary.worst.items():
            if name not in summary.faults:
                self.cmp.record(CHECK, OK, f"{summary.count} edges", name, (), {"error": worst})
        if summary.inconclusive:
            self.cmp.note(
                f"{self.s.op}: not checked where the function is not smooth: {'; '.join(summary.inconclusive)}"
            )

    def _check_empty(self, empty: EmptyCheck, cmp: Comparison) -> None:
        if not fits_others(self.s):
            return
        try:
            empty(cmp)
        except Exception as error:
            cmp.note(f"{self.s.op}: with {EMPTY} the check raises {first_line(error, 90)}")

    def _judge_each(
        self,
        each: Iterator[Edge],
        add: Callable[[EdgeVerdict], list[Finding]],
        on_edge: Callable[[str], None] = lambda name: None,
    ) -> None:
        """Judge one edge after another."""
        known = {f.input for f in self.cmp.findings_of(DERIVATIVE) if f.verdict == WRONG}
        for name, other, values, alike in each:
            if self.plan.spent() >= 1:
                self.skipped.append("some edges")
                return
            on_edge(name)
            new = add(judge_edge(name, other, values, alike, self.cmp.rng, known))
            self.cmp.findings += new
            known |= {f.input for f in new}

    def _judge_isolated(self, summary: EdgeSummary, empty: EmptyCheck) -> None:
        """Inputs of other shapes, in a forked process: a crash there becomes a note."""
        if not fits_others(self.s) and len(self.s.wrt) == len(self.s.leaves):
            # There are no labels either, of which one might be ignored: nothing to try.
            return

        def work(send: Callable[[Any], None]) -> None:
            def add(one: EdgeVerdict) -> list[Finding]:
                send(one)
                return [f for f in one.findings if f.verdict == WRONG]

            self._judge_each(reshaped(self.s, self.cmp.rng), add, send)
            send(EMPTY)
            self._check_empty(
                empty, Comparison(self.cmp.probe, _SendingList(send), _noting(send), self.cmp.rng, self.cmp.values)
            )
            send(self.skipped)

        sent, died = isolated.run_isolated(work)
        last = "the first of them"
        for one in sent:
            if isinstance(one, str):
                last = one
            elif isinstance(one, EdgeVerdict):
                self.cmp.findings += summary.add(one)
            elif isinstance(one, Finding):
                self.cmp.add(one)
            elif isinstance(one, tuple):
                self.cmp.note(*one)
            else:
                self.skipped = one
        if died:
            self.cmp.note(f"{self.s.op}: the process that tried other shapes died at {last}: {died}")


class _SendingList(list[Finding]):
    """A list of findings that also sends each of them."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        super().__init__()
        self._send = send

    def append(self, finding: Finding) -> None:
        """Append and send it."""
        super().append(finding)
        self._send(finding)


def _noting(send: Callable[[Any], None]) -> Callable[[str], None]:
    return lambda text: send((text,))
