"""Recognises common errors in a gradient: candidates for the right one, tested against known derivatives."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradlab.autodiff.checker.core.probe import Pair

Box = tuple[tuple[int, int], ...]
Elements = Mapping[tuple[int, ...], tuple[float, float, float]]


@dataclass(frozen=True)
class Pattern:
    """The error in words, and the number of wrong elements if a candidate gives it exactly."""

    detail: str = ""
    count: int | None = None


def pattern(g: np.ndarray, box: Box, pairs: Sequence[Pair], wrong: Elements) -> Pattern:
    """Name the pattern of a wrong gradient.

    A candidate is a complete gradient; it is right if it reproduces the finite differences along every direction tried
    so far, which needs no evaluation. The elements compared one by one give the candidates their constants.
    """
    for detail, candidate in _candidates(g, box, wrong):
        if _explains(candidate, pairs):
            off = np.abs(candidate - g) > 1e-9 * np.maximum(np.abs(candidate), np.abs(g))
            return Pattern(_with_shape(detail, g, box), int(off.sum()))
    inside = g[tuple(slice(a, b) for a, b in box)]
    if inside.size and not inside.any():
        return Pattern(_with_shape("missing: the gradient is 0 there", g, box), inside.size)
    return Pattern(_with_shape("", g, box))


def _candidates(g: np.ndarray, box: Box, wrong: Elements) -> Iterator[tuple[str, np.ndarray]]:
    inside = tuple(slice(a, b) for a, b in box)

    def changed(change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        candidate = g.copy()
        candidate[inside] = change(g[inside])
        return candidate

    if g[inside].any():
        yield "leaked: it should be 0 there", changed(np.zeros_like)
    yield "the sign is flipped", changed(np.negative)
    factors = [got / wanted for got, wanted, _ in wrong.values() if wanted and np.isfinite(got / wanted)]
    k = float(np.median(factors)) if factors else 0.0
    if abs(k) > 1e-12:
        yield f"a constant factor of {_factor(k)}", changed(lambda part: part / k)
    if g.ndim >= 2 and g.shape[-1] == g.shape[-2]:
        yield "transposed", np.swapaxes(g, -1, -2)
    if g.ndim >= 2:
        yield "written in transposed order", np.swapaxes(g, -1, -2).reshape(g.shape)
    for axis in range(g.ndim):
        yield f"reversed along axis {axis}", np.flip(g, axis)
        for by in (1, -1):
            yield f"shifted by {by} along axis {axis}", np.roll(g, -by, axis)
    offsets = [got - wanted for got, wanted, _ in wrong.values()]
    if offsets:
        a = float(np.median(offsets))
        yield f"a constant {a:.6g} is added", changed(lambda part: part - a)


def _explains(candidate: np.ndarray, pairs: Sequence[Pair]) -> bool:
    for pair in pairs:
        ((_, d),) = pair.direction.items()
        # The constants of a candidate come from finite differences too, hence the wider margin.
        norm = math.sqrt(float(np.sum((candidate * d) ** 2)))
        if abs(float(np.vdot(candidate, d)) - pair.wanted) > 10 * pair.error + 1e-6 * max(norm, abs(pair.wanted)):
            return False
    return bool(pairs)


def _factor(k: float) -> str:
    if abs(1 / k - round(1 / k)) < 1e-6 and abs(round(1 / k)) > 1:
        return f"1/{round(1 / k)}"
    return f"{k:.8g}"


def _with_shape(detail: str, g: np.ndarray, box: Box) -> str:
    return ", ".join(part for part in (detail, _shape_of(g.shape, box)) if part)


def _shape_of(shape: tuple[int, ...], box: Box) -> str:
    """The box in words, if it is a row, a tail or a tile."""
    partial = [k for k, (a, b) in enumerate(box) if (a, b) != (0, shape[k])]
    lengths = [b - a for a, b in box]
    if not partial or len(shape) == 0:
        return ""
    if math.prod(lengths) == 1:
        return "a single element"
    if len(partial) == 1:
        k = partial[0]
        a, b = box[k]
        if b == shape[k]:
            return f"the last of axis {k}" if b == a + 1 else f"the tail only: the last {b - a} of axis {k}"
        return f"one slice of axis {k}" if b == a + 1 else ""
    width = max(lengths[k] for k in partial)
    if width > 1 and all(_aligned(box[k], shape[k], _power(lengths[k])) for k in partial):
        return f"one tile of {' x '.join(map(str, lengths))}"
    return ""


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _aligned(ends: tuple[int, int], size: int, tile: int) -> bool:
    return ends[0] % tile == 0 and (ends[1] % tile == 0 or ends[1] == size)


def tile_of(box: Box, shape: tuple[int, ...], tile: Sequence[int]) -> str:
    """The programs whose tiles the box overlaps, numbered row by row over the grid of tiles."""
    sides = tuple(tile)[-len(shape) :]
    grid = [-(-n // t) for n, t in zip(shape, sides, strict=True)]
    overlapped = [(a // t, -(-b // t)) for (a, b), t in zip(box, sides, strict=True)]
    count = math.prod(b - a for a, b in overlapped)
    first = [a for a, _ in overlapped]
    program = int(np.ravel_multi_index(first, grid)) if shape else 0
    of = f"tile ({', '.join(map(str, first))}) of {' x '.join(map(str, grid))}"
    if count == 1:
        return f"all in program {program}, {of}"
    return f"in {count} programs from program {program} on, {of}"
