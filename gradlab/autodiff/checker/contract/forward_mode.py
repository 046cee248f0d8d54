"""Forward mode against the pullback: <dy, J v> is <Jᵀ dy, v>; where it is not, differences say which of them is off."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gradlab.autodiff.checker.core.comparison import Promises
from gradlab.autodiff.checker.core.derivative import SENSITIVITY, uneven
from gradlab.autodiff.checker.core.finding import OK, WRONG

CHECK = "forward mode"
# How many times its own error a difference has to be away to be one.
FAR = 8.0
# Directions: all of them have to show a fault.
LINES = 2

Direction = Mapping[int, np.ndarray]
Jvp = Callable[[Direction], Sequence[np.ndarray]]


def directions(p: Promises, rng: np.random.Generator) -> list[dict[int, np.ndarray]]:
    """Random directions of all inputs."""
    s, probe = p.probe.subject, p.probe
    return [{i: uneven(rng, probe.arrays[i].shape) * probe.units(i) for i in s.wrt} for _ in range(LINES)]


def held(p: Promises, lines: Sequence[Direction], found: Sequence[Sequence[np.ndarray]], jvp: Jvp, how: str) -> None:
    """Hold what forward mode gives along some directions; one finding, or one for each input that is wrong.

    Where it and the pullback differ, wrong is only what differs from differences that agree with the pullback.

    Args:
        found: J v for each direction.
        jvp: gives it for any other.
    """
    if not any(_apart(p, line, each) for line, each in zip(lines, found, strict=True)):
        p.say(CHECK, OK, how, "", (), {"error": max(_error(p, v, f) for v, f in zip(lines, found, strict=True))})
        return
    said = False
    for i in p.probe.subject.wrt:
        own = [{i: line[i]} for line in lines]
        each = [jvp(line) for line in own]
        if not all(_apart(p, line, f) for line, f in zip(own, each, strict=True)):
            continue
        proofs = [_proof(p, line, f) for line, f in zip(own, each, strict=True)]
        if all(proofs):
            error = max(_error(p, line, f) for line, f in zip(own, each, strict=True))
            p.say(CHECK, WRONG, f"{proofs[0]}, {how}", p.probe.subject.names[i], (), {"error": error})
            said = True
    if not said:
        p.note(f"{p.probe.subject.op}: {how} is not what the pullback gives, and differences do not say which is off")


def _sides(p: Promises, line: Direction, found: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """<dy, J v> and <Jᵀ dy, v>, and their scale."""
    probe = p.probe
    parts = [c * t for c, t in zip(probe.cotangents, found, strict=True)]
    got = float(sum(np.sum(part) for part in parts))
    pulled = float(sum(np.vdot(probe.gradients[i], d) for i, d in line.items()))
    sizes = [*(part for part in parts), *(probe.gradients[i] * d for i, d in line.items())]
    scale = max(float(np.sqrt(sum(np.sum(part**2) for part in sizes))), 1e-300)
    return got, pulled, scale


def _floor(p: Promises, line: Direction) -> float:
    """What rounding may leave of both."""
    return sum(float(np.sum(p.grain(i) * np.abs(d))) for i, d in line.items())


def _error(p: Promises, line: Direction, found: Sequence[np.ndarray]) -> float:
    got, pulled, scale = _sides(p, line, found)
    return abs(got - pulled) / scale


def _apart(p: Promises, line: Direction, found: Sequence[np.ndarray]) -> bool:
    got, pulled, scale = _sides(p, line, found)
    off, slack = abs(got - pulled), max(SENSITIVITY, *(p.slack(i) for i in line)) * scale
    return not (off <= slack or off <= slack + _floor(p, line))


def _proof(p: Promises, line: Direction, found: Sequence[np.ndarray]) -> str:
    """What forward mode, pullback and differences give, if the differences are sure and agree with the pullback."""
    got, pulled, scale = _sides(p, line, found)
    pair = p.probe.pair(line, p.probe.slope(line))
    least = FAR * pair.error + 10 * SENSITIVITY * scale + _floor(p, line)
    if pair.verdict != OK or not abs(got - pair.wanted) > least:
        return ""
    return f"gives {got:.10g} along a direction, the pullback {pulled:.10g} and differences {pair.wanted:.10g}"
