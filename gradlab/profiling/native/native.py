"""What each framework itself offers for an op: a function of the Spec's arrays in order and of its options by name."""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol


class Native(NamedTuple):
    """A framework's own function for an op, and the name that its documentation knows it by.

    Attributes:
        around: what has to be entered for it to run, outside of what is timed.
        needs: a package beside the framework; nothing for most.
    """

    label: str
    fn: Callable[..., Any]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    needs: str = ""


class Natives(Protocol):
    """What `native_torch` and `native_jax` hold."""

    NATIVE: dict[str, Native]

    def precise(self) -> AbstractContextManager[Any]:
        """A context in which float32 products are float32 products, never TF32."""
        ...

    def widen(self, array: Any) -> Any:
        """The array in float32 where it is in half precision, else as it is."""
        ...

    def fresh(self, folder: str) -> AbstractContextManager[Any]:
        """Within it compilers find nothing, neither in memory nor on disk, and keep what they make in `folder`."""
        ...

    def forget(self) -> None:
        """Drop compiled programs and cached memory, so that no case affects another."""
        ...


def natives(side: str) -> Natives:
    """The natives of a side."""
    found: Any = importlib.import_module(f"gradlab.profiling.native.native_{side}")
    return found


def native(side: str, op: str) -> Native:
    """What `side` itself offers for `op`.

    Raises:
        ValueError: nothing is named for it.
    """
    table = natives(side).NATIVE
    if op not in table:
        raise ValueError(f"native: op is {op!r}, wanted one with an entry in profiling/native/native_{side}.py")
    return table[op]
