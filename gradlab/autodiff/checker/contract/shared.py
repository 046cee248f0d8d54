"""One array as several arguments, and two inputs of many that alone need a gradient."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradlab.autodiff.checker.core.comparison import Promises

SAME, PAIRS = "one array twice", "two inputs only"
# Pairs that are looked at: all of five inputs, so many of more.
MOST = 10


def same_array(p: Promises) -> None:
    """Where one array is several arguments its gradient is the sum of theirs, and the values are the same.

    These are the arguments that came as one array; when none did, all of one shape and dtype.
    """
    s, probe = p.probe.subject, p.probe
    groups = _given(p) or _alike(p)
    if not groups:
        return
    arrays = list(probe.arrays)
    first = {j: group[0] for group in groups for j in group}
    for j, i in first.items():
        arrays[j] = arrays[i]
    try:
        # `put` makes an array of its own of each.
        values, apart = s.values(arrays), dict(zip(s.wrt, s.gradients(arrays, probe.cotangents), strict=True))
    except Exception:
        # These values nobody gave: they may not be what the function takes.
        return
    if [y.shape for y in values] != [y.shape for y in p.values] or not all(np.isfinite(y).all() for y in values):
        return

    def tied(*leaves: Any) -> tuple[Any, ...]:
        return s.flat(*(leaves[first.get(i, i)] for i in range(len(leaves))))

    wrt = [i for i in s.wrt if first.get(i, i) == i]
    wanted = [
        sum((apart[j] for j, k in first.items() if k == i), np.zeros_like(apart[i])) if i in first else apart[i]
        for i in wrt
    ]
    names = "; ".join(", ".join(s.names[j] for j in group) for group in groups)
    how = f"with one array as {names}, against equal ones"
    pull = s.side.pullback(tied, wrt)
    both = s.quickened(lambda leaves, cotangents: (tied(*leaves), pull(leaves, cotangents)))
    results, found = both(s.put(arrays), s.put_like_results(probe.cotangents))
    p.same_values(SAME, [s.side.take(y) for y in results], how, values)
    p.same_gradients(SAME, [s.side.take(g) for g in found], wrt, how, wanted)


def _given(p: Promises) -> list[list[int]]:
    """The places of each array that came more than once."""
    s = p.probe.subject
    found: dict[int, list[int]] = {}
    for i in s.wrt:
        found.setdefault(id(s.leaves[i]), []).append(i)
    return [group for group in found.values() if len(group) > 1]


def _alike(p: Promises) -> list[list[int]]:
    s = p.probe.subject
    found: dict[tuple[tuple[int, ...], str], list[int]] = {}
    for i in s.wrt:
        if s.arrays[i].size:
            found.setdefault((s.arrays[i].shape, s.dtypes[i]), []).append(i)
    return [group for group in found.values() if len(group) > 1]


def pairs(p: Promises) -> None:
    """Whoever asks for the gradients of two inputs gets the same ones; other subsets are looked at elsewhere."""
    s, probe = p.probe.subject, p.probe
    if len(s.wrt) < (4 if s.side.name == "torch" else 3):
        return
    chosen = _some(list(itertools.combinations(s.wrt, 2)), p.rng)
    pulls = [s.side.pullback(s.flat, pair) for pair in chosen]
    every = s.quickened(lambda leaves, cotangents: [pull(leaves, cotangents) for pull in pulls])
    each = every(s.put(probe.arrays), s.put_like_results(probe.cotangents))
    for pair, found in zip(chosen, each, strict=True):
        names = " and ".join(s.names[i] for i in pair)
        wanted = [probe.gradients[i] for i in pair]
        p.same_gradients(PAIRS, [s.side.take(g) for g in found], pair, f"with a gradient for {names} only", wanted)


def _some(every: Sequence[tuple[int, int]], rng: np.random.Generator) -> list[tuple[int, int]]:
    chosen = range(len(every)) if len(every) <= MOST else sorted(rng.choice(len(every), MOST, replace=False))
    return [every[int(k)] for k in chosen]
