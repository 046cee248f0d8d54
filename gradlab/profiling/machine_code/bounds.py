"""The Specs' codegen bounds against machine code: which kernels must be compiled for them, and which bounds hold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from gradlab.kernels.bounds import Bound
from gradlab.kernels.spec import Spec
from gradlab.profiling.machine_code.code import Code
from gradlab.profiling.machine_code.inspection import InspectSubject, case_of, choose


@dataclass(frozen=True)
class Verdict:
    """One codegen bound of an op on one side, checked.

    Attributes:
        checked: how many compiled kernels were checked against it.
        extreme: the number that is nearest to its bound, or furthest past it; None when there is none.
        broken: the kernels that break it, each in words.
    """

    op: str
    side: str
    bound: Bound
    checked: int
    extreme: float | None
    broken: tuple[str, ...]


def subjects(
    ops: Sequence[Spec], sides: Sequence[str] | None, dtypes: Sequence[str], archs: Sequence[str] = ("sm_80", "sm_90")
) -> tuple[InspectSubject, ...]:
    """The cases that have bounds on these architectures, each once."""
    named: dict[tuple[str, ...], InspectSubject] = {}
    for s in choose(ops, sides, dtypes, None):
        for bound in s.op.bounds:
            if not set(bound.archs).intersection(archs):
                continue
            case = case_of(s.op, bound.case or None)
            key = (s.op.name, case.name, s.side, s.dtype)
            known = named.setdefault(key, InspectSubject(s.op, case, s.side, s.dtype))
            if bound.executed and _applies(bound, s.side, s.dtype):
                named[key] = replace(known, bounds=(*known.bounds, bound))
    return tuple(named.values())


def hold(ops: Sequence[Spec], sides: Sequence[str], codes: Iterable[Code]) -> list[Verdict]:
    """Check every bound of the ops on every side against its kernels; bounds that apply to none are left out."""
    codes = list(codes)
    verdicts = [_verdict(op, side, bound, codes) for op in ops for side in sides for bound in op.bounds]
    return [verdict for verdict in verdicts if verdict is not None]


def _verdict(op: Spec, side: str, bound: Bound, codes: Sequence[Code]) -> Verdict | None:
    if not _applies(bound, side):
        return None
    case = case_of(op, bound.case or None).name
    there = [
        c
        for c in codes
        if (c.op, c.side, c.case) == (op.name, side, case)
        and (not bound.dtypes or c.dtype in bound.dtypes)
        and c.arch in bound.archs
    ]
    if not there:
        return None
    # An error without a kernel is every kernel's.
    checked = [c for c in there if not bound.kernels or c.kernel in bound.kernels or (c.error and c.kernel == "?")]
    broken = [f"{_where(c)}: {c.error}" for c in checked if c.error]
    values = [(c, _value(op, bound, c)) for c in checked if not c.error]
    if bound.executed:
        broken += [f"{_where(c)}: not executed" for c, value in values if value is None]
    broken += [f"{_where(c)}: {bound.fact} is {value:.6g}" for c, value in values if not bound.holds(value)]
    # A bound on a kernel that no longer exists would hold for ever.
    missing = [name for name in bound.kernels if not any(c.kernel == name for c in there)]
    broken += [f"no kernel {name!r}; there are {', '.join(dict.fromkeys(c.kernel for c in there))}" for name in missing]
    numbers = [value for _, value in values if value is not None]
    extreme = (min if bound.least is not None else max)(numbers) if numbers else None
    return Verdict(op.name, side, bound, len(checked), extreme, tuple(broken))


def _applies(bound: Bound, side: str, dtype: str | None = None) -> bool:
    """Whether it speaks of this side and dtype; what is executed is known on torch alone."""
    if bound.executed and side != "torch":
        return False
    return (not bound.sides or side in bound.sides) and (dtype is None or not bound.dtypes or dtype in bound.dtypes)


def _value(op: Spec, bound: Bound, code: Code) -> float | None:
    if not bound.per:
        return code.fact(bound.fact)
    sizes, threads = op.at(case_of(op, code.case)).sizes, code.threads_executed()
    return None if threads is None else threads / prod(sizes[axis] for axis in bound.per.split())


def _where(code: Code) -> str:
    return f"{code.name}, {code.dtype}, {code.arch}"
