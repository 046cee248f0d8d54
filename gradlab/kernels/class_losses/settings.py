"""What the class losses are told beside their arrays. Framework-free."""

from typing import NamedTuple


class ClassLoss(NamedTuple):
    """The settings of a loss: the class whose rows are ignored, label smoothing s, and the softcap, 0 for none."""

    ignore_index: int
    label_smoothing: float
    softcap: float
    smooth: bool = True

    def flat(self) -> list:
        """As a registered op takes them; `ClassLoss(*flat)` is the inverse."""
        return list(self)
