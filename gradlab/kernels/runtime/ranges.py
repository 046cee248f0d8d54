"""The hook for named ranges: launchers and rules open them through `opener`, which is None until profiling sets it.

When it is None, a launch costs one global read and one branch more.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Opener(Protocol):
    """The interface that profiling implements; each method returns a context manager of the range."""

    def call(
        self, side: str, op: str, fn: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
    ) -> AbstractContextManager[Any]:
        """The forward call of an op's public function `fn` with these arguments."""
        ...

    def rule(self, side: str, rule: type, ctx: Any, cotangents: tuple[Any, ...]) -> AbstractContextManager[Any]:
        """The backward of a rule, whose `ctx` was passed to `noted`."""
        ...

    def noted(self, ctx: Any) -> None:
        """Record that a rule was applied; its backward gets the same `ctx`."""
        ...

    def kernel(self, side: str, kernel: Any, arrays: list[Any], back: bool) -> AbstractContextManager[Any]:
        """A launch of `kernel` (its Python function) over `arrays`.

        `back` says whether the framework's own engine runs backward; it decides where no rule is open.
        """
        ...


opener: Opener | None = None
