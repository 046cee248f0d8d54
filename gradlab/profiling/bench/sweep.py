"""Sizes for a curve of time against size: an op's largest case, scaled down along the axes its Spec names."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from gradlab.kernels.spec import Case, Spec

# The factors by which axes are divided: five points of the curve.
FACTORS = (16, 8, 4, 2, 1)


def scaled(op: Spec, case: Case, factors: Sequence[int] = FACTORS) -> Iterator[tuple[Case, float]]:
    """The case at each size, smallest first, with what is left of each growing axis; equal sizes once."""
    seen = set()
    for factor in factors:
        sizes = {axis: max(1, n // factor) if axis in op.grows else n for axis, n in case.sizes.items()}
        if tuple(sizes.values()) not in seen:
            seen.add(tuple(sizes.values()))
            yield replace(case, name=f"{case.name}/{factor}" if factor > 1 else case.name, sizes=sizes), 1 / factor
