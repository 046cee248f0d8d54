"""The verdict on each gradient: first along directions of all inputs, then one by one for inputs still open."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradlab.autodiff.checker.core.differentiability import is_lipschitz, why_not_wrong
from gradlab.autodiff.checker.core.finding import INCONCLUSIVE, OK, WRONG, Finding
from gradlab.autodiff.checker.core.finite_differences import LineDerivative
from gradlab.autodiff.checker.core.probe import SENSITIVITY, SURE, Pair, Probe, signs, uneven
from gradlab.autodiff.checker.verdict.locate import locate

CHECK = "derivative vs finite differences"


@dataclass
class View:
    """The data for the plots of one gradient."""

    probe: Probe
    input: int
    slope: LineDerivative
    direction: np.ndarray
    finding: Finding
    tile: tuple[int, ...]


def judge(
    probe: Probe,
    rng: np.random.Generator,
    add: Callable[[Finding], None],
    check: str = CHECK,
    tiles: Mapping[str, Sequence[int]] | None = None,
    uniform: bool = False,
    at_once: int = 0,
    known: Collection[str] = (),
) -> list[View]:
    """Judge every gradient of the probe; one finding for each input.

    Args:
        add: called with each finding.
        tiles: the tile that one program writes in each input's gradient, to name the program that is wrong.
        uniform: move all elements of an input by the same step, so that ties remain ties.
        known: inputs already found wrong, which are skipped.
        at_once: directions of all inputs tried first; only inputs that these do not resolve are judged one by one.
    """
    tiles = tiles or {}
    views: list[View] = []
    inputs = [i for i in probe.subject.wrt if probe.arrays[i].size and probe.subject.names[i] not in known]
    verdicts = _at_once(probe, inputs, rng, check, uniform, at_once, views)
    alone = [i for i in inputs if i not in verdicts]
    for i in alone:
        draw = _ones if uniform else signs
        d = draw(rng, probe.arrays[i].shape) * probe.units(i)
        broken = _not_finite(probe, i, check, rng, uniform)
        if broken is not None:
            verdicts[i] = broken
            continue
        # The tiny step is taken only along the joint direction and where an error shows: to larger steps a fine
        # staircase looks like a slope.
        slope = probe.slope({i: d}, narrow=uniform)
        pair = probe.pair({i: d}, slope)
        if pair.verdict == WRONG and not uniform:
            slope = probe.slope({i: d})
            pair = probe.pair({i: d}, slope)
        probe.steps[i] = slope.step
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


def _at_once(
    probe: Probe,
    inputs: Sequence[int],
    rng: np.random.Generator,
    check: str,
    uniform: bool,
    times: int,
    views: list[View],
) -> dict[int, Finding]:
    """Findings of the inputs that directions of all inputs together (random signs, last uneven) prove right.

    Empty if any of these directions does not agree.
    """
    if not times or not inputs or not all(np.isfinite(probe.gradients[i]).all() for i in inputs):
        return {}
    noise, resolved = probe.noise, list(inputs)
    worst: dict[str, float] = {"error": 0.0, "part": 0.0}
    pairs: list[Pair] = []
    for turn in range(times):
        last = turn == times - 1
        draw = _one_length if uniform else uneven if last else signs
        whole = {i: draw(rng, probe.arrays[i].shape) * probe.units(i) for i in inputs}
        slope = probe.slope(whole, narrow=last)
        pair = probe.pair(whole, slope)
        if pair.verdict != OK:
            # This proves nothing, and its noise is discarded: where slopes jump it looks large.
            probe.noise = noise
            return {}
        resolved = [i for i in resolved if _resolves(probe, pair, i)]
        pairs.append(pair)
        worst["error"] = max(worst["error"], pair.off / pair.scale if pair.scale else pair.off)
        worst["part"] = max(worst["part"], pair.off / (max(pair.scale, pair.natural) or 1.0))
    probe.joint += pairs
    subject = probe.subject
    detail, common = f"error {worst['error']:.1e}", (subject.op, subject.side.name, subject.case)
    found = {i: Finding(check, OK, subject.names[i], (), detail, worst, *common) for i in resolved}
    views += [View(probe, i, slope, whole[i], finding, ()) for i, finding in found.items()]
    return found


def _resolves(probe: Probe, pair: Pair, i: int) -> bool:
    """Whether a joint pair resolves one input as well as a pair of its own would: an error in it must show beside much
    larger gradients."""
    own = float(np.linalg.norm(probe.gradients[i] * pair.direction[i]))
    natural = pair.natural * min(probe.units(k) for k in pair.direction) / probe.units(i)
    return pair.off <= pair.error + SENSITIVITY * own and pair.error <= SURE * max(own, natural)


def _together(
    probe: Probe,
    inputs: list[int],
    rng: np.random.Generator,
    check: str,
    tiles: Mapping[str, Sequence[int]],
    verdicts: dict[int, Finding],
) -> None:
    """One uneven direction of all inputs at once; if it disagrees, each input is judged again on its own."""
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


def _finding(
    probe: Probe,
    i: int,
    check: str,
    pairs: list[Pair],
    rng: np.random.Generator,
    tiles: Mapping[str, Sequence[int]],
    uniform: bool,
) -> Finding:
    pair = pairs[-1]
    name = probe.subject.names[i]
    verdict = pair.verdict
    why = ""
    if verdict == WRONG:
        why = why_not_wrong(probe, i, _lines(probe, i, rng, uniform), _others(probe, rng, uniform))
        verdict = INCONCLUSIVE if why else WRONG
    numbers = {
        "error": pair.off / pair.scale if pair.scale else pair.off,
        "allowed": pair.allowed / pair.scale if pair.scale else pair.allowed,
        "got": pair.got,
        "wanted": pair.wanted,
        # Where a function is flat its gradient is rounding, small beside the results.
        "part": pair.off / (max(pair.scale, pair.natural) or 1.0),
    }
    subject = probe.subject
    common: dict[str, Any] = {"op": subject.op, "side": subject.side.name, "case": subject.case}
    if verdict == WRONG:
        place = None if uniform else locate(probe, i, rng, tiles.get(name))
        if place is not None:
            return Finding(check, WRONG, name, place.first, place.detail, {**numbers, **place.numbers}, **common)
        if uniform:
            detail = (
                f"when all its elements move by the same step, the gradient gives {pair.got:.10g}, finite "
                f"differences {pair.wanted:.10g} "
                f"(error {numbers['error']:.1e}, allowed {numbers['allowed']:.1e})"
            )
            return Finding(check, WRONG, name, (), detail, numbers, **common)
        # Wrong along a line, but in no single element: the line crossed a feature that differences did not resolve.
        verdict, why = INCONCLUSIVE, "no single element is found wrong"
    if verdict == INCONCLUSIVE or probe.skipped:
        return Finding(check, INCONCLUSIVE, name, (), _unsettled(probe, pair, numbers, why), numbers, **common)
    return Finding(check, OK, name, (), f"error {numbers['error']:.1e}{_sensitivity(pair)}", numbers, **common)


def _sensitivity(pair: Pair) -> str:
    """The smallest error that would show, for values of a low precision."""
    part = pair.error / (pair.scale or 1.0)
    return f"; computed in low precision, an error below {part:.1e} would not show" if part > SURE else ""


def _lines(probe: Probe, i: int, rng: np.random.Generator, uniform: bool) -> Callable[[], np.ndarray]:
    """Random directions of an input; if `uniform`, one number for each leading index, so that ties remain."""
    shape = probe.arrays[i].shape
    rows = (*shape[:1], *[1] * (len(shape) - 1)) if len(shape) > 1 else ()
    return lambda: np.broadcast_to(uneven(rng, rows if uniform else shape), shape) * probe.units(i)


def _others(probe: Probe, rng: np.random.Generator, uniform: bool) -> Callable[[int], np.ndarray]:
    return lambda k: _lines(probe, k, rng, uniform)()


def _unsettled(probe: Probe, pair: Pair, numbers: Mapping[str, float], why: str) -> str:
    if why:
        return f"differs from finite differences by {numbers['error']:.1e}, which proves nothing: {why}"
    if probe.skipped:
        return (
            f"{probe.skipped} of {probe.middle.size} results have a kink there or do not converge; without them the "
            f"error is {numbers['error']:.1e}"
        )
    if not np.isfinite(pair.error):
        where = f"; {probe.outside}" if probe.outside else ""
        return f"finite differences do not converge at any step: a kink, a jump or the edge of the domain{where}"
    part = pair.error / pair.scale if pair.scale else pair.error
    if pair.wrong:
        return (
            f"differs from finite differences by {numbers['error']:.1e}, which their own error {part:.1e} may explain"
        )
    return (
        f"finite differences have an error of {part:.1e} (noise, low precision or a kink); the gradient differs by less"
    )


def _not_finite(probe: Probe, i: int, check: str, rng: np.random.Generator, uniform: bool) -> Finding | None:
    """A gradient with NaN or infinity is wrong where the function is differentiable; the first such element is
    reported."""
    subject, g = probe.subject, probe.gradients[i]
    bad = ~np.isfinite(g)
    if not bad.any():
        return None
    at = tuple(int(k) for k in np.argwhere(bad)[0])
    d = np.zeros(g.shape)
    d[at] = probe.units(i)
    other = _lines(probe, i, rng, uniform)
    lines = iter([d])
    why = why_not_wrong(probe, i, lambda: next(lines, other()), _others(probe, rng, uniform))
    got, wanted = float(g[at]), probe.pair({i: d}, probe.slope({i: d})).wanted / probe.units(i)
    if why and np.isnan(got) and _all_lipschitz(probe, i, d, other, _others(probe, rng, uniform)):
        # A kink has many subgradients, and none of them is NaN.
        why = ""
    count = f"{int(bad.sum())} of {g.size} elements are not finite; this is the first, it is {got}"
    detail = f"{count} and {why}" if why else f"{count}, finite differences give {wanted:.6g}"
    numbers = {"error": np.inf, "got": got, "wanted": wanted, "count": float(bad.sum()), "of": float(g.size)}
    verdict = INCONCLUSIVE if why else WRONG
    return Finding(check, verdict, subject.names[i], at, detail, numbers, subject.op, subject.side.name, subject.case)


def _all_lipschitz(
    probe: Probe, i: int, d: np.ndarray, draw: Callable[[], np.ndarray], others: Callable[[int], np.ndarray]
) -> bool:
    """Whether difference quotients stay bounded along one element, a line of the input, and a line of all inputs."""
    rest = {k: others(k) for k in probe.subject.wrt if k != i and probe.arrays[k].size}
    return all(is_lipschitz(probe, line) for line in ({i: d}, {i: draw()}, {i: draw(), **rest}))


def _one_length(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, float(uneven(rng, ())))


def _ones(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape)
