"""`reduction` of elementwise losses: its values, and the divisor of the sum."""

from gradlab.autodiff.arguments.errors import want_choice

REDUCTIONS = ("none", "mean", "sum")


def divisor(op: str, reduction: str, size: int) -> int:
    """What the sum over `size` elements is divided by.

    Raises:
        ValueError: an unknown reduction.
    """
    want_choice(op, "reduction", reduction, REDUCTIONS)
    return size if reduction == "mean" else 1
