"""The promises in the Specs held against machine code: what must be compiled for them, and which are kept."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gradlab.kernels.bounds import Promise
from gradlab.kernels.spec import Spec
from gradlab.profiling.machine_code.code import Code
from gradlab.profiling.machine_code.inspection import Subject, case_of, choose


@dataclass(frozen=True)
class Verdict:
    """A promise of an op on one side, and how it stands.

    Attributes:
        held: how many compiled kernels were held to it.
        extreme: the number that is nearest to its bound, or furthest past it; None when there is none.
        broken: the kernels that break it, each in words.
    """

    op: str
    side: str
    promise: Promise
    held: int
    extreme: float | None
    broken: tuple[str, ...]


def subjects(
    ops: Sequence[Spec], sides: Sequence[str] | None, dtypes: Sequence[str], archs: Sequence[str] = ("sm_80", "sm_90")
) -> tuple[Subject, ...]:
    """The cases that the promises speak of on these architectures, each once."""
    named: dict[tuple[str, ...], Subject] = {}
    for s in choose(ops, sides, dtypes, None):
        for promise in s.op.promises:
            if not set(promise.archs).intersection(archs):
                continue
            case = case_of(s.op, promise.case or None)
            named[s.op.name, case.name, s.side, s.dtype] = Subject(s.op, case, s.side, s.dtype)
    return tuple(named.values())


def hold(ops: Sequence[Spec], sides: Sequence[str], codes: Iterable[Code]) -> list[Verdict]:
    """Every promise of the ops on every side against its kernels; those that speak of none of them are left out."""
    codes = list(codes)
    verdicts = [_verdict(op, side, promise, codes) for op in ops for side in sides for promise in op.promises]
    return [verdict for verdict in verdicts if verdict is not None]


def _verdict(op: Spec, side: str, promise: Promise, codes: Sequence[Code]) -> Verdict | None:
    if promise.sides and side not in promise.sides:
        return None
    case = case_of(op, promise.case or None).name
    there = [
        c
        for c in codes
        if (c.op, c.side, c.case) == (op.name, side, case)
        and (not promise.dtypes or c.dtype in promise.dtypes)
        and c.arch in promise.archs
    ]
    if not there:
        return None
    # An error without a kernel is every kernel's.
    held = [c for c in there if not promise.kernels or c.kernel in promise.kernels or (c.error and c.kernel == "?")]
    broken = [f"{_where(c)}: {c.error}" for c in held if c.error]
    values = [(c, c.fact(promise.fact)) for c in held if not c.error]
    broken += [f"{_where(c)}: {promise.fact} is {value:.6g}" for c, value in values if not promise.holds(value)]
    # A promise about a kernel that is gone would be kept for ever.
    missing = [name for name in promise.kernels if not any(c.kernel == name for c in there)]
    broken += [f"no kernel {name!r}; there are {', '.join(dict.fromkeys(c.kernel for c in there))}" for name in missing]
    numbers = [value for _, value in values if value is not None]
    extreme = (min if promise.least is not None else max)(numbers) if numbers else None
    return Verdict(op.name, side, promise, len(held), extreme, tuple(broken))


def _where(code: Code) -> str:
    return f"{code.name}, {code.dtype}, {code.arch}"
