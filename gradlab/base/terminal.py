"""Lines on a terminal."""

from typing import Any


def print_line(console: Any, text: str, style: str | None = None) -> None:
    """A line of a rich console as it is: no wrapping, a path's brackets are no markup, and numbers get no colours."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
