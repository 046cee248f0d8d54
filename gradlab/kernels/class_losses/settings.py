"""What a loss of classes is besides its arrays. Framework-free."""

from collections.abc import Sequence
from typing import Any, NamedTuple

# Rows and classes of a tile of linear_cross_entropy's dx that counts as a whole, or not at all.
SIDE = 128


class ClassLoss(NamedTuple):
    """How a row of logits and its target become target probabilities and capped logits; hashable.

    r[m v] = a[v] ((1 - label_smoothing) q[m v] + label_smoothing / V), 0 where the class is ignore_index, and
    z[m v] = softcap tanh(x[m v] / softcap), or x where softcap is 0.
    """

    ignore_index: int
    label_smoothing: float
    softcap: float

    def flat(self) -> list[Any]:
        """Its numbers, as a registered op takes them."""
        return list(self)

    @classmethod
    def of(cls, flat: Sequence[Any]) -> "ClassLoss":
        """The inverse of `flat`."""
        return cls(*flat)


class ClassPart(NamedTuple):
    """Which classes of a vocabulary that is spread over several devices one of them has: those from `first` on.

    How many follow says the array; of all parts together there are `total`. Targets name classes of all parts. A class
    that is elsewhere is not out of range: its row has its log-sum-exp here, and no target.
    """

    first: int
    total: int
