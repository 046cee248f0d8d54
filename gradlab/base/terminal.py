"""Lines for a terminal."""

from typing import Any


def print_line(console: Any, text: str, style: str | None = None) -> None:
    """A line of a rich console as it is: no wrapping, a path's brackets are no markup, and numbers get no colours."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
