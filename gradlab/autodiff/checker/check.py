"""`gradlab.check`: the entry point of the checker, for an op of the package by name or for any function."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from gradlab.autodiff.checker.core.finding import WRONG
from gradlab.autodiff.checker.core.options import Sizes
from gradlab.autodiff.checker.function import PARTS, CheckPlan, check_function
from gradlab.autodiff.checker.ops import check_op
from gradlab.autodiff.checker.progress import bar
from gradlab.autodiff.checker.report import GradientError, Report
from gradlab.autodiff.frameworks.side import installed
from gradlab.autodiff.frameworks.side import side as side_of
from gradlab.kernels.spec import spec, specs

_DTYPES = ("float32", "float16", "bfloat16")


def check(
    target: str | Callable[..., Any] | None = None,
    *args: Any,
    reference: Callable[..., Any] | None = None,
    order: int | None = None,
    cases: Any = None,
    seed: int = 0,
    raises: bool = True,
    strict: bool = False,
    side: str | Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    parts: Sequence[str] | None = None,
    tiles: Mapping[str, Sequence[int]] | None = None,
    sizes: Sizes | None = None,
    replays: int | None = None,
    compiled: bool = False,
    budget: float | None = None,
    on_event: Callable[[str, float], None] | None = None,
) -> Report:
    """Check the gradients of a function of torch tensors or jax arrays, or of an op of this package.

    Args:
        target: a function; a torch module, whose parameters are inputs by their names (`lambda x: module(x)` leaves
            them out); or an op's name, None for every op.
        args: of the function: arrays of one framework in any nesting. Floats are differentiated, in float64 whatever
            their dtype; integer arrays are constants.
        reference: a correct implementation of the same function: called with the original arguments, returns arrays of
            any kind.
        order: 1 for the gradient only, 2 to require a second derivative too; by default a second derivative is checked
            where the function has one.
        cases: options of the function: a mapping of lists, checked as their product, or a list of mappings.
        seed: of random cotangents, directions and generated inputs.
        raises: raise GradientError on a wrong finding, and print inconclusive ones to standard error; if False, return
            the report, in which bad arguments and a function that raises are findings too.
        strict: raise on inconclusive findings as well.
        side: for an op: "torch", "jax" or both; by default all that are installed.
        dtypes: low precisions to compare with float64; by default the dtype of the arguments.
        parts: which of "derivative", "facts", "contract", "second", "precision", "edges", "reference"; all of them.
        tiles: by parameter, the tile of its gradient that one program writes, so that an error is reported with its
            program.
        sizes: for a function, further axis lengths at which the first derivative and everything that depends on the
            size are checked: `{128: [127, 129]}` for every axis of that length, `{("x", 0): 1}` for a single axis.
        replays: how often the same call is repeated to test determinism; by default as often as fits into 20 ms.
        compiled: compare torch.compile with eager too, which takes seconds; jax runs under jit anyway.
        budget: seconds, with a progress bar; parts that do not fit are listed in an inconclusive finding.
        on_event: called in place of the progress bar with what runs next and the share of the budget that is spent.

    Returns:
        A Report: prints as a table, true when every finding is ok; `.findings`, `.to_json()`, `.plot(path)`.

    Raises:
        GradientError: a finding is wrong and `raises` is set; the message is the first finding.
        ValueError: an unknown op, side, part or dtype, no float argument or result, NaN in an argument, or a budget of
            less than 20 calls.
        TypeError: arguments that are not arrays of one framework.
    """
    if order not in (None, 1, 2):
        raise ValueError(f"check: order is {order!r}, wanted 1 or 2")
    if budget is not None and not budget > 0:
        raise ValueError(f"check: budget is {budget!r}, wanted seconds above 0")
    _require_known("parts", parts, PARTS)
    _require_known("dtypes", dtypes, _DTYPES)
    if sizes is not None and not callable(target):
        raise ValueError("check: sizes: came with an op, wanted a function: an op is checked at the sizes of its Spec")
    report = Report()
    plan = CheckPlan(
        order or 2, seed, dtypes, PARTS if parts is None else tuple(parts), tiles, replays, compiled, budget
    )
    plan.raises, plan.require_second, plan.sizes, plan.complete = raises, order == 2, sizes, parts is not None
    if on_event is not None:
        plan.on_event = on_event
    with nullcontext() if on_event is not None else bar(plan):
        if target is None or isinstance(target, str):
            chosen = specs().values() if target is None else [spec(target)]
            names = installed() if side is None else (side,) if isinstance(side, str) else tuple(side)
            for one in chosen:
                check_op(one, [side_of(name) for name in names], plan, report)
        elif callable(target):
            check_function(target, args, reference, cases, plan, report)
        else:
            raise TypeError(f"check: target is a {type(target).__name__}, wanted a function or an op's name")
    if raises:
        if report.verdict == WRONG or (strict and not report):
            raise GradientError(report)
        for finding in report.wrong():
            print(finding.message, file=sys.stderr)
    return report


def _require_known(argument: str, given: Sequence[str] | None, known: Sequence[str]) -> None:
    unknown = [g for g in given or () if g not in known]
    if unknown:
        raise ValueError(f"check: {argument} holds {unknown[0]!r}, wanted some of {', '.join(known)}")
