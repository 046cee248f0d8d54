"""One array as several arguments, and gradients for two inputs of many."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradlab.autodiff.checker.core.comparison import Comparison

SAME, PAIRS = "one array twice", "two inputs only"
# The most pairs of inputs tried: all pairs of up to five inputs.
MOST = 10


def same_array(cmp: Comparison) -> None:
    """If one array is passed as several arguments its gradient is the sum of theirs, and the values are the same.

    These are the arguments given as one array; if there are none, all arguments of one shape and dtype.
    """
    s, probe = cmp.probe.subject, cmp.probe
    groups = _given(cmp) or _alike(cmp)
    if not groups:
        return
    arrays = list(probe.arrays)
    first = {j: group[0] for group in groups for j in group}
    for j, i in first.items():
        arrays[j] = arrays[i]
    try:
        # `put` makes a separate array for each.
        values, separate = s.values(arrays), dict(zip(s.wrt, s.gradients(arrays, probe.cotangents), strict=True))
    except Exception:
        # These inputs are generated: the function may not accept them.
        return
    if [y.shape for y in values] != [y.shape for y in cmp.values] or not all(np.isfinite(y).all() for y in values):
        return

    def tied(*leaves: Any) -> tuple[Any, ...]:
        return s.flat(*(leaves[first.get(i, i)] for i in range(len(leaves))))

    wrt = [i for i in s.wrt if first.get(i, i) == i]
    wanted = [
        sum((separate[j] for j, k in first.items() if k == i), np.zeros_like(separate[i]))
        if i in first
        else separate[i]
        for i in wrt
    ]
    names = "; ".join(", ".join(s.names[j] for j in group) for group in groups)
    how = f"with one array as {names}, against separate equal arrays"
    pull = s.side.pullback(tied, wrt)
    both = s.jitted(lambda leaves, cotangents: (tied(*leaves), pull(leaves, cotangents)))
    results, found = both(s.put(arrays), s.put_like_results(probe.cotangents))
    cmp.same_values(SAME, [s.side.take(y) for y in results], how, values)
    cmp.same_gradients(SAME, [s.side.take(g) for g in found], wrt, how, wanted)


def _given(cmp: Comparison) -> list[list[int]]:
    """The indices of each array that was given more than once."""
    s = cmp.probe.subject
    found: dict[int, list[int]] = {}
    for i in s.wrt:
        found.setdefault(id(s.leaves[i]), []).append(i)
    return [group for group in found.values() if len(group) > 1]


def _alike(cmp: Comparison) -> list[list[int]]:
    s = cmp.probe.subject
    found: dict[tuple[tuple[int, ...], str], list[int]] = {}
    for i in s.wrt:
        if s.arrays[i].size:
            found.setdefault((s.arrays[i].shape, s.dtypes[i]), []).append(i)
    return [group for group in found.values() if len(group) > 1]


def pairs(cmp: Comparison) -> None:
    """Gradients for two inputs only are the same as in all of them; other subsets are checked elsewhere."""
    s, probe = cmp.probe.subject, cmp.probe
    if len(s.wrt) < (4 if s.side.name == "torch" else 3):
        return
    chosen = _sample(list(itertools.combinations(s.wrt, 2)), cmp.rng)
    pulls = [s.side.pullback(s.flat, pair) for pair in chosen]
    every = s.jitted(lambda leaves, cotangents: [pull(leaves, cotangents) for pull in pulls])
    each = every(s.put(probe.arrays), s.put_like_results(probe.cotangents))
    for pair, found in zip(chosen, each, strict=True):
        names = " and ".join(s.names[i] for i in pair)
        wanted = [probe.gradients[i] for i in pair]
        cmp.same_gradients(PAIRS, [s.side.take(g) for g in found], pair, f"with a gradient for {names} only", wanted)


def _sample(every: Sequence[tuple[int, int]], rng: np.random.Generator) -> list[tuple[int, int]]:
    chosen = range(len(every)) if len(every) <= MOST else sorted(rng.choice(len(every), MOST, replace=False))
    return [every[int(k)] for k in chosen]
