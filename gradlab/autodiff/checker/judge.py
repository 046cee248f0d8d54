"""The verdict on each gradient of one subject: even directions one input at a time, then all inputs unevenly."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradlab.autodiff.checker.derivative import SENSITIVITY, SURE, Pair, Probe, signs, uneven
from gradlab.autodiff.checker.differences import Slope
from gradlab.autodiff.checker.finding import INCONCLUSIVE, OK, WRONG, Finding
from gradlab.autodiff.checker.locate import locate

CHECK = "grad ~ FD of itself"


@dataclass
class View:
    """What a plot of one gradient is drawn from."""

    probe: Probe
    input: int
    slope: Slope
    direction: np.ndarray
    finding: Finding
    tile: tuple[int, ...]


def judge(probe: Probe, rng: np.random.Generator, add: Callable[[Finding], None], check: str = CHECK,
          tiles: Mapping[str, Sequence[int]] | None = None, uniform: bool = False,
          at_once: bool = False) -> list[View]:  # fmt: skip
    """Judge every gradient of the probe; one finding an input.

    Args:
        add: takes each finding.
        tiles: the tile of a program in each input's gradient, to say which program is wrong.
        uniform: move all elements of an input alike, as ties must be moved to stay ties.
        at_once: first one direction through everything; only inputs that it says too little of are judged alone.
    """
    tiles = tiles or {}
    views: list[View] = []
    inputs = [i for i in probe.subject.wrt if probe.arrays[i].size]
    verdicts = _at_once(probe, inputs, rng, check, uniform) if at_once else {}
    alone = [i for i in inputs if i not in verdicts]
    for i in alone:
        draw = _ones if uniform else signs
        d = draw(rng, probe.arrays[i].shape) * probe.units(i)
        broken = _not_finite(probe, i, check)
        if broken is not None:
            verdicts[i] = broken
            continue
        # The tiny step is taken once, along the direction that moves everything.
        slope = probe.slope({i: d}, narrow=uniform)
        probe.steps[i] = slope.step
        pair = probe.pair({i: d}, slope)
        if pair.verdict == INCONCLUSIVE and probe.settle(slope):
            pair = probe.pair({i: d}, slope)
        probe.pairs.setdefault(i, []).append(pair)
        verdicts[i] = _finding(probe, i, check, [pair], rng, tiles, uniform)
        views.append(View(probe, i, slope, d, verdicts[i], tuple(tiles.get(probe.subject.names[i], ()))))
    sound = [i for i in alone if verdicts[i].verdict == OK]
    if sound and not uniform:
        _together(probe, sound, rng, check, tiles, verdicts)
    for i in inputs:
        for view in views:
            if view.input == i:
                view.finding = verdicts[i]
        add(verdicts[i])
    return views


def _at_once(probe: Probe, inputs: Sequence[int], rng: np.random.Generator, check: str,
             uniform: bool) -> dict[int, Finding]:  # fmt: skip
    """The inputs that one uneven direction through all of them finds right; none when anything looks wrong on it."""
    if not inputs or not all(np.isfinite(probe.gradients[i]).all() for i in inputs):
        return {}
    draw = _one_length if uniform else uneven
    whole = {i: draw(rng, probe.arrays[i].shape) * probe.units(i) for i in inputs}
    noise = probe.noise
    pair = probe.pair(whole, probe.slope(whole))
    if pair.verdict != OK:
        # Nothing was learnt, of the noise neither: where slopes jump it looks large.
        probe.noise = noise
        return {}
    told = []
    for i, d in whole.items():
        # What would be asked of it alone: beside a gradient that is much larger a wrong one must show as well.
        own = float(np.linalg.norm(probe.gradients[i] * d))
        natural = pair.natural * min(probe.units(k) for k in inputs) / probe.units(i)
        if pair.off <= pair.error + SENSITIVITY * own and pair.error <= SURE * max(own, natural):
            told.append(i)
    numbers = {
        "error": pair.off / pair.scale if pair.scale else pair.off,
        "part": pair.off / (max(pair.scale, pair.natural) or 1.0),
    }
    subject = probe.subject
    said, common = f"error {numbers['error']:.1e}", (subject.op, subject.side.name, subject.case)
    return {i: Finding(check, OK, subject.names[i], (), said, numbers, *common) for i in told}


def _together(probe: Probe, inputs: list[int], rng: np.random.Generator, check: str,
              tiles: Mapping[str, Sequence[int]], verdicts: dict[int, Finding]) -> None:  # fmt: skip
    """One uneven direction through all inputs at once; where it is wrong, each input alone says whose fault it is."""
    whole = {i: uneven(rng, probe.arrays[i].shape) * probe.units(i) for i in inputs}
    joint = probe.pair(whole, probe.slope(whole, min(probe.steps[i] for i in inputs)))
    if joint.verdict == OK:
        return
    for i in inputs:
        d = uneven(rng, probe.arrays[i].shape) * probe.units(i)
        pair = probe.pair({i: d}, probe.slope({i: d}, probe.steps[i]))
        probe.pairs.setdefault(i, []).append(pair)
        if pair.verdict != OK:
            verdicts[i] = _finding(probe, i, check, [pair], rng, tiles, False)


def _finding(probe: Probe, i: int, check: str, pairs: list[Pair], rng: np.random.Generator,
             tiles: Mapping[str, Sequence[int]], uniform: bool) -> Finding:  # fmt: skip
    pair = pairs[-1]
    name = probe.subject.names[i]
    verdict = pair.verdict
    if verdict == WRONG and not uniform:
        # Once more along another line: a fault stays, a kink that happened to look settled does not.
        d = uneven(rng, probe.arrays[i].shape) * probe.units(i)
        again = probe.pair({i: d}, probe.slope({i: d}, probe.steps[i], thorough=True))
        probe.pairs.setdefault(i, []).append(again)
        verdict = again.verdict if again.verdict != OK or probe.arrays[i].size > 1 else INCONCLUSIVE
        if verdict == OK:
            # Equal and opposite errors show along even directions only; a third line decides.
            d = signs(rng, probe.arrays[i].shape) * probe.units(i)
            again = probe.pair({i: d}, probe.slope({i: d}, probe.steps[i], thorough=True))
            probe.pairs[i].append(again)
            verdict = WRONG if again.verdict == WRONG else INCONCLUSIVE
    numbers = {
        "error": pair.off / pair.scale if pair.scale else pair.off,
        "allowed": pair.allowed / pair.scale if pair.scale else pair.allowed,
        "got": pair.got, "wanted": pair.wanted,
        # Where a function is flat its gradient is rounding: beside what it moves it is nothing.
        "part": pair.off / (max(pair.scale, pair.natural) or 1.0),
    }  # fmt: skip
    subject = probe.subject
    common = {"op": subject.op, "side": subject.side.name, "case": subject.case}
    if verdict == WRONG:
        place = None if uniform else locate(probe, i, rng, tiles.get(name))
        if place is not None:
            return Finding(check, WRONG, name, place.first, place.said, {**numbers, **place.numbers}, **common)
        if uniform:
            said = (
                f"when all its elements move alike, the gradient gives {pair.got:.10g}, differences {pair.wanted:.10g} "
                f"(error {numbers['error']:.1e}, allowed {numbers['allowed']:.1e})"
            )
            return Finding(check, WRONG, name, (), said, numbers, **common)
        # Wrong along a line, but no element is: that line met something the differences could not see.
        verdict = INCONCLUSIVE
    if verdict == INCONCLUSIVE or probe.skipped:
        return Finding(check, INCONCLUSIVE, name, (), _unsettled(probe, pair, numbers), numbers, **common)
    return Finding(check, OK, name, (), f"error {numbers['error']:.1e}", numbers, **common)


def _unsettled(probe: Probe, pair: Pair, numbers: Mapping[str, float]) -> str:
    if probe.skipped:
        return (
            f"{probe.skipped} of {probe.middle.size} results have a kink there or do not settle; without them the "
            f"error is {numbers['error']:.1e}"
        )
    if not np.isfinite(pair.error):
        return "differences do not settle at any step: a kink, a jump or the edge of the domain"
    part = pair.error / pair.scale if pair.scale else pair.error
    if pair.wrong:
        return f"differs from the differences by {numbers['error']:.1e}, which their own error {part:.1e} may explain"
    return f"differences are no surer than {part:.1e} (noise, low precision or a kink); they see no error above that"


def _not_finite(probe: Probe, i: int, check: str) -> Finding | None:
    """A gradient with NaN or infinity, held against differences along the first such element."""
    subject, g = probe.subject, probe.gradients[i]
    bad = ~np.isfinite(g)
    if not bad.any():
        return None
    at = tuple(int(k) for k in np.argwhere(bad)[0])
    d = np.zeros(g.shape)
    d[at] = probe.units(i)
    slope = probe.slope({i: d})
    pair = probe.pair({i: d}, slope)
    got, wanted = float(g[at]), pair.wanted / probe.units(i)
    settled = np.isfinite(pair.error) and pair.error <= 1e-3 * max(abs(pair.wanted), 1e-300) + 1e-9
    # Infinity may be right where slopes grow without bound; NaN is wrong wherever the quotients stay bounded.
    settled |= bool(np.isnan(got)) and _bounded(probe, slope)
    count = f"{int(bad.sum())} of {g.size} elements are not finite; this is the first, it is {got}"
    said = f"{count}, differences give {wanted:.6g}" if settled else f"{count} and differences do not settle there"
    numbers = {"error": np.inf, "got": got, "wanted": wanted, "count": float(bad.sum()), "of": float(g.size)}
    verdict = WRONG if settled else INCONCLUSIVE
    return Finding(check, verdict, subject.names[i], at, said, numbers, subject.op, subject.side.name, subject.case)


def _bounded(probe: Probe, slope: Slope) -> bool:
    """Whether difference quotients stay within a factor of 8 of each other as the step shrinks a thousandfold."""
    c = np.concatenate([part.reshape(-1) for part in probe.cotangents])
    by_step = sorted(((h, float(np.dot(c, q))) for h, q in slope.tried), key=lambda pair: pair[0])
    sizes = [abs(q) for _, q in by_step if np.isfinite(q)]
    return len(sizes) == len(by_step) and max(sizes[: len(sizes) // 2]) <= 8 * max(sizes[len(sizes) // 2 :])


def _one_length(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, float(uneven(rng, ())))


def _ones(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape)
