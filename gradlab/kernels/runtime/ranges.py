"""The hook of named ranges: launch gates and rules open one through `opener`, which is None until profiling fills it.

Nothing here or below knows what a range is for. Off, a launch pays one global read and one branch.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Opener(Protocol):
    """What profiling puts here; each method gives a context that holds the range open."""

    def call(
        self, side: str, op: str, fn: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
    ) -> AbstractContextManager[Any]:
        """The public function `fn` of an op, called with these arguments, on its way forward."""
        ...

    def rule(self, side: str, rule: type, ctx: Any, cotangents: tuple[Any, ...]) -> AbstractContextManager[Any]:
        """The backward of a rule, whose context `noted` has seen."""
        ...

    def noted(self, ctx: Any) -> None:
        """A rule was applied; `ctx` is what its backward will be given."""
        ...

    def kernel(self, side: str, kernel: Any, arrays: list[Any], back: bool) -> AbstractContextManager[Any]:
        """A launch of `kernel` (its Python function) over `arrays`.

        `back` says whether the framework's own engine runs backward; it decides where no rule is open.
        """
        ...


opener: Opener | None = None
