"""Makes Triton kernels from Python functions, taking a function's source by the line numbers in its code object.

Triton takes the lines from `inspect`, which tokenizes them in Python to see where a function ends: half of the time
that importing the lab's kernels takes.
"""

import inspect
import linecache
import types
from collections.abc import Callable
from typing import Any

from triton.runtime.jit import JITFunction

from gradlab.kernels.private.private_triton import made_with


def made(fn: Callable[..., Any]) -> JITFunction:
    """`triton.jit(fn)` of a function that ends with a statement, not with a comment."""
    return made_with(_INSPECT, fn)


def lines(fn: Any) -> tuple[list[str], int]:
    """As `inspect.getsourcelines`: the lines, with decorators, and the number of the first."""
    code = getattr(fn, "__code__", None)
    if code is None:
        return inspect.getsourcelines(fn)
    linecache.checkcache(code.co_filename)
    every = linecache.getlines(code.co_filename, fn.__globals__)
    if not every:
        return inspect.getsourcelines(fn)
    last = max(end for _, end, *_ in code.co_positions() if end is not None)
    return every[code.co_firstlineno - 1 : last], code.co_firstlineno


_INSPECT = types.SimpleNamespace(**{**vars(inspect), "getsourcelines": lines})
