"""Forward mode against the pullback: <dy, J v> = <Jᵀ dy, v>; if not, finite differences tell which is wrong."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gradlab.autodiff.checker.core.comparison import Comparison
from gradlab.autodiff.checker.core.finding import OK, WRONG
from gradlab.autodiff.checker.core.probe import SENSITIVITY, uneven

CHECK = "forward mode"
# A difference counts if it is this many times its own error.
FAR = 8.0
# The number of directions; an error must show along all of them.
LINES = 2

Direction = Mapping[int, np.ndarray]
Jvp = Callable[[Direction], Sequence[np.ndarray]]


def directions(cmp: Comparison, rng: np.random.Generator) -> list[dict[int, np.ndarray]]:
    """Random directions of all inputs."""
    s, probe = cmp.probe.subject, cmp.probe
    return [{i: uneven(rng, probe.arrays[i].shape) * probe.units(i) for i in s.wrt} for _ in range(LINES)]


def compare_jvps(
    cmp: Comparison, lines: Sequence[Direction], found: Sequence[Sequence[np.ndarray]], jvp: Jvp, how: str
) -> None:
    """Compare forward mode along some directions; one finding, or one for each input that is wrong.

    Where it differs from the pullback, it is wrong only if the finite differences agree with the pullback.

    Args:
        found: J v for each direction.
        jvp: computes J v for any other direction.
    """
    if not any(_differ(cmp, line, each) for line, each in zip(lines, found, strict=True)):
        cmp.record(CHECK, OK, how, "", (), {"error": max(_error(cmp, v, f) for v, f in zip(lines, found, strict=True))})
        return
    reported = False
    for i in cmp.probe.subject.wrt:
        single = [{i: line[i]} for line in lines]
        each = [jvp(line) for line in single]
        if not all(_differ(cmp, line, f) for line, f in zip(single, each, strict=True)):
            continue
        proofs = [_proof(cmp, line, f) for line, f in zip(single, each, strict=True)]
        if all(proofs):
            error = max(_error(cmp, line, f) for line, f in zip(single, each, strict=True))
            cmp.record(CHECK, WRONG, f"{proofs[0]}, {how}", cmp.probe.subject.names[i], (), {"error": error})
            reported = True
    if not reported:
        cmp.note(
            f"{cmp.probe.subject.op}: forward mode {how} differs from the pullback, and finite differences "
            "cannot tell which is wrong"
        )


def _both_products(cmp: Comparison, line: Direction, found: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """<dy, J v> and <Jᵀ dy, v>, and their scale."""
    probe = cmp.probe
    parts = [c * t for c, t in zip(probe.cotangents, found, strict=True)]
    forward = float(sum(np.sum(part) for part in parts))
    reverse = float(sum(np.vdot(probe.gradients[i], d) for i, d in line.items()))
    sizes = [*(part for part in parts), *(probe.gradients[i] * d for i, d in line.items())]
    scale = max(float(np.sqrt(sum(np.sum(part**2) for part in sizes))), 1e-300)
    return forward, reverse, scale


def _floor(cmp: Comparison, line: Direction) -> float:
    """The rounding error of both."""
    return sum(float(np.sum(cmp.grain(i) * np.abs(d))) for i, d in line.items())


def _error(cmp: Comparison, line: Direction, found: Sequence[np.ndarray]) -> float:
    forward, reverse, scale = _both_products(cmp, line, found)
    return abs(forward - reverse) / scale


def _differ(cmp: Comparison, line: Direction, found: Sequence[np.ndarray]) -> bool:
    forward, reverse, scale = _both_products(cmp, line, found)
    off, slack = abs(forward - reverse), max(SENSITIVITY, *(cmp.slack(i) for i in line)) * scale
    return not (off <= slack or off <= slack + _floor(cmp, line))


def _proof(cmp: Comparison, line: Direction, found: Sequence[np.ndarray]) -> str:
    """The three numbers in words, if the finite differences are accurate and agree with the pullback; else empty."""
    forward, reverse, scale = _both_products(cmp, line, found)
    pair = cmp.probe.pair(line, cmp.probe.slope(line))
    least = FAR * pair.error + 10 * SENSITIVITY * scale + _floor(cmp, line)
    if pair.verdict != OK or not abs(forward - pair.wanted) > least:
        return ""
    return (
        f"gives {forward:.10g} along a direction, the pullback {reverse:.10g} and finite differences {pair.wanted:.10g}"
    )
