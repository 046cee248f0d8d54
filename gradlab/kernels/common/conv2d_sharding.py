"""How a convolution may be split over devices: by images, by filters, and by channels; with groups by images alone.

Rows and columns of images stay whole: a window reaches over into the next part. Functions of the registered ops'
arguments, the same names in the same order as in `conv2d_triton.py`.
"""

from typing import Any

from gradlab.kernels.common.window import Geometry

_IMAGES = {"x": "B C H W", "y": "B F P Q", "w": "F C R S"}


def forward(x: Any, w: Any, bias: Any, mask: Any, geometry: Any, relu: bool, channels_last: bool) -> str:
    """Split by channels each device has a term of the sum, which is no sum any more after relu."""
    text = _text("x[x], w[w], bias[F], mask[y] -> y[y]; whole H W P Q R S", geometry)
    return text if relu or Geometry.of(geometry).groups > 1 else f"{text}; sums C; adds bias"


def dgrad(dy: Any, w: Any, mask: Any, geometry: Any, channels_last: bool) -> str:
    """The sum over filters."""
    text = _text("dy[y], w[w], mask[y] -> dx[x]; whole P Q R S", geometry)
    return text if Geometry.of(geometry).groups > 1 else f"{text}; sums F"


def wgrad(dy: Any, x: Any, mask: Any, geometry: Any, channels_last: bool) -> str:
    """The sum over images."""
    return _text("dy[y], x[x], mask[y] -> dw[w]; whole H W P Q; sums B", geometry)


def bias_sum(dy: Any, mask: Any) -> str:
    """The sum over images and pixels."""
    return "dy[B F P Q], mask[B F P Q] -> db[F]; sums B P Q"


def _text(names: str, geometry: Any) -> str:
    """The text with the axes of x, y and w; a filter of a group has that group's channels D."""
    grouped = Geometry.of(geometry).groups > 1
    axes = _IMAGES | ({"w": "F D R S"} if grouped else {})
    for name, letters in axes.items():
        names = names.replace(f"[{name}]", f"[{letters}]")
    if grouped:
        names += "".join(f"; whole {axis}" for axis in "CDF" if axis in names.split("->")[0])
    return names
