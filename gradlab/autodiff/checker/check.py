"""The check's door: `gradlab.check` for an op of the lab by name, or for anybody's function."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from gradlab.autodiff.checker.core.finding import WRONG
from gradlab.autodiff.checker.core.request import Sizes
from gradlab.autodiff.checker.function import PARTS, Plan, check_function
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
    started: Callable[[str, float], None] | None = None,
) -> Report:
    """Check the gradients of a function of torch tensors or jax arrays, or of an op of the lab.

    Args:
        target: a function; a torch module, whose parameters are inputs by their names (`lambda x: module(x)` leaves
            them out); or an op's name, None for every op.
        args: of the function: arrays of one framework in any nesting. Floats are differentiated, in float64 whatever
            their dtype; integer arrays are constants.
        reference: the same function, right: called with the arguments as they came, returns arrays of any kind.
        order: 1 for the gradient, 2 for the second derivative too, which has to exist then; when not given, 2 where the
            function has one.
        cases: options of the function: a mapping of lists, checked as their product, or a list of mappings.
        seed: of cotangents, directions and drawn inputs.
        raises: raise instead of returning a report that says wrong; what is inconclusive is printed to standard error.
            Without, bad arguments of the function and a function that raises are findings too.
        strict: raise for what is inconclusive as well.
        side: for an op: "torch", "jax" or several; all that are installed when not given.
        dtypes: low precisions to judge against float64; those of the arguments when not given.
        parts: which of "derivative", "facts", "contract", "second", "precision", "edges", "reference"; all of them.
        tiles: by parameter, the tile of its gradient that a program owns: a fault is named with its program.
        sizes: of a function, axis lengths beside the given ones, at which the first derivative and what depends on the
            size are looked at: `{128: [127, 129]}` for every axis of that length, `{("x", 0): 1}` for one alone.
        replays: how often the same call is made again; as often as fits into a moment when not given.
        compiled: hold torch.compile against eager too, which takes seconds; jax is under jit anyway.
        budget: seconds, with a progress bar; what no longer fits is said, and counts as inconclusive.
        started: instead of the bar, called with what runs next and the part of the budget that is spent.

    Returns:
        A Report: prints as a table, true when all is well; `.findings`, `.to_json()`, `.plot(path)`.

    Raises:
        GradientError: something is wrong, and `raises`; the message is the first finding.
        ValueError: an unknown op, side, part or dtype, no float argument or result, NaN in an argument, a budget that
            one call nearly fills.
        TypeError: arguments that are not arrays of one framework.
    """
    if order not in (None, 1, 2):
        raise ValueError(f"check: order is {order!r}, wanted 1 or 2")
    if budget is not None and not budget > 0:
        raise ValueError(f"check: budget is {budget!r}, wanted seconds above 0")
    _want_known("parts", parts, PARTS)
    _want_known("dtypes", dtypes, _DTYPES)
    if sizes is not None and not callable(target):
        raise ValueError("check: sizes are of a function's arguments; an op of the lab has those of its Spec")
    report = Report()
    plan = Plan(order or 2, seed, dtypes, PARTS if parts is None else tuple(parts), tiles, replays, compiled, budget)
    plan.raises, plan.asked_second, plan.sizes, plan.all_of_it = raises, order == 2, sizes, parts is not None
    if started is not None:
        plan.started = started
    with nullcontext() if started is not None else bar(plan):
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


def _want_known(argument: str, given: Sequence[str] | None, known: Sequence[str]) -> None:
    unknown = [g for g in given or () if g not in known]
    if unknown:
        raise ValueError(f"check: {argument} hold {unknown[0]!r}, wanted some of {', '.join(known)}")
