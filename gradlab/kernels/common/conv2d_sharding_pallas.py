"""How a convolution and its pullbacks may be split over devices, in the axis letters of channels-last arrays.

Images are split along B, filters along F, and along C forward is a sum. Pixels are not split: windows overlap.
"""

import re
from typing import Any

from gradlab.kernels.common.window import Geometry


def forward(x: Any, w: Any, bias: Any, mask: Any, geometry: Geometry, relu: bool) -> str:
    """The rule of y."""
    text = "x[B H W C], w[R S D F], bias[F], mask[B P Q F] -> y[B P Q F]; whole H W P Q R S; sums D; adds bias"
    return _by_groups(text, w.shape[2], w.shape[3], geometry)


def dgrad(dy: Any, w: Any, mask: Any, geometry: Geometry) -> str:
    """The rule of dx."""
    text = "dy[B P Q F], w[R S D F], mask[B P Q F] -> dx[B H W C]; whole P Q R S; sums F"
    return _by_groups(text, w.shape[2], w.shape[3], geometry)


def wgrad(dy: Any, x: Any, mask: Any, geometry: Geometry) -> str:
    """The rule of dw[R S D F]."""
    text = "dy[B P Q F], x[B H W C], mask[B P Q F] -> dw[R S D F]; whole H W P Q; sums B"
    return _by_groups(text, x.shape[3] // geometry.groups, dy.shape[3], geometry)


def _by_groups(text: str, D: int, F: int, geometry: Geometry) -> str:
    """With one group D is C; with one channel and one filter a group both are G; else neither is split."""
    if geometry.groups == 1:
        return re.sub(r"\bD\b", "C", text)
    if D == 1 and geometry.groups == F:
        return re.sub(r"\b[CF]\b", "G", re.sub(r"\bD\b", "1", text))
    return f"{text}; whole C D F"
