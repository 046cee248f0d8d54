"""The colours of the page and its figures, once for light and once for dark; figures are drawn once for both."""

from typing import NamedTuple


class Colour(NamedTuple):
    """A colour by name: in light, in dark, and the stand-in that a figure is drawn with before the page names it."""

    light: str
    dark: str
    stand_in: str


# Chosen to differ in lightness too, so that they can be distinguished without hue (after Okabe and Ito, 2008).
COLOURS = {
    "ink": Colour("#1b1f24", "#e6e8eb", "#010101"),
    "soft": Colour("#5d6670", "#9aa4b0", "#020202"),
    "line": Colour("#d4d9df", "#343b44", "#030303"),
    "paper": Colour("#ffffff", "#14171b", "#040404"),
    "panel": Colour("#f6f7f9", "#1c2026", "#050505"),
    "torch": Colour("#c4501b", "#f08a52", "#060606"),
    "jax": Colour("#0a6fb0", "#5cb3ec", "#070707"),
    "good": Colour("#1a7f4b", "#4cc38a", "#080808"),
    "bad": Colour("#b3261e", "#ff7b72", "#090909"),
    "doubt": Colour("#8a6100", "#e3b341", "#0a0a0a"),
}


def variables(dark: bool) -> str:
    """The colours as CSS variables."""
    return " ".join(f"--{name}: {c.dark if dark else c.light};" for name, c in COLOURS.items())


def named(svg: str) -> str:
    """A figure drawn with stand-ins, its colours those that the page has at the moment."""
    for name, colour in COLOURS.items():
        svg = svg.replace(colour.stand_in, f"var(--{name})")
    return svg


def light(name: str) -> str:
    """A colour for a file that stands alone."""
    return COLOURS[name].light


def stand_in(name: str) -> str:
    """A colour for a figure of the page."""
    return COLOURS[name].stand_in
