"""A few of all combinations of options, in which every pair of two options' values still is."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def pairs(chosen: Sequence[tuple]) -> set[tuple]:
    """Every (option, its value, another option, its value) among them."""
    return {(i, repr(one[i]), j, repr(one[j])) for one in chosen for i, j in itertools.combinations(range(len(one)), 2)}


def pairwise(*values: Sequence[Any], allowed: Callable[..., bool] = lambda *one: True) -> list[tuple]:
    """Greedily from a seeded shuffle of the product: each next one adds the most pairs, until all are there."""
    product = [one for one in itertools.product(*values) if allowed(*one)]
    product = [product[i] for i in np.random.default_rng(0).permutation(len(product))]
    left, chosen = pairs(product), []
    while left:
        chosen.append(max(product, key=lambda one: len(left & pairs([one]))))
        left -= pairs(chosen[-1:])
    return chosen
