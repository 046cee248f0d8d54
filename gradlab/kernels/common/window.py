"""The geometry of convolutions and poolings: window, stride, dilation, padding; integers, no arrays."""

from collections.abc import Sequence
from typing import Any, NamedTuple


def pair(value) -> tuple[int, int]:
    """(rows, columns) of a number or a pair."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def pads(padding, window, stride, dilation, image) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, bottom), (left, right)) of a number, a pair, pairs of pairs, "valid", or "same".

    "same" is the P = H / stride, rounded up, of jax; with stride 1 it is also torch's. An odd pixel goes to the end.
    """
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        found = []
        for n, k, s, d in zip(image, window, stride, dilation, strict=True):
            total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
            found.append((total // 2, total - total // 2))
        return found[0], found[1]
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    rows, columns = padding
    return pair(rows), pair(columns)


def output(n: int, k: int, stride: int, dilation: int, pad: tuple[int, int]) -> int:
    """P for H: the number of windows that fit."""
    return (n + sum(pad) - dilation * (k - 1) - 1) // stride + 1


class Geometry(NamedTuple):
    """All settings of a convolution or a pooling; hashable, rows before columns."""

    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    groups: int
    image: tuple[int, int]
    window: tuple[int, int]

    @property
    def result(self) -> tuple[int, int]:
        """(P, Q)."""
        rows, columns = zip(self.image, self.window, self.stride, self.dilation, self.pads, strict=True)
        return output(*rows), output(*columns)

    def constants(self) -> dict[str, Any]:
        """What kernels are compiled for, by the names of their parameters."""
        (R, S), (SH, SW), (DH, DW) = self.window, self.stride, self.dilation
        return {"R": R, "S": S, "SH": SH, "SW": SW, "DH": DH, "DW": DW, "TOP": self.pads[0][0], "LEFT": self.pads[1][0]}

    def flat(self) -> list[int]:
        """Thirteen integers, as a registered op takes them."""
        return [*self.stride, *self.dilation, *self.pads[0], *self.pads[1], self.groups, *self.image, *self.window]

    @classmethod
    def of(cls, flat: Sequence[int]) -> "Geometry":
        """The inverse of `flat`."""
        SH, SW, DH, DW, top, bottom, left, right, groups, H, W, R, S = flat
        return cls((SH, SW), (DH, DW), ((top, bottom), (left, right)), groups, (H, W), (R, S))
