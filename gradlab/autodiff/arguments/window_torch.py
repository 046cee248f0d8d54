"""Checks of a window's settings in torch: numbers and pairs."""

import numpy as np

from gradlab.autodiff.arguments.errors import refuse
from gradlab.kernels.common.window import pair


def pair_of(op: str, name: str, value, least: int) -> tuple[int, int]:
    """Rows and columns of an option, each an int from `least`."""
    values = value if isinstance(value, (tuple, list)) else (value, value)
    if len(values) == 1:
        values = (*values, *values)
    integers = [isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in values]
    if len(values) != 2 or not all(integers) or min(values) < least:
        refuse(op, name, repr(value), f"an int from {least} or a pair of them")
    return pair(values)
