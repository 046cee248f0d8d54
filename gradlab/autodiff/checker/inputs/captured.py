"""Arrays that a function holds beside its arguments: inputs of other shapes would no longer fit them."""

import dis
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# How far functions that a function calls, and containers, are followed.
DEEP = 4


def holds_arrays(fn: Callable[..., Any], options: Mapping[str, Any]) -> bool:
    """Whether a function holds arrays, or lists of numbers, as constants of its own.

    Looked through are closures, partials, default arguments, the object of a bound method, its options, the globals
    that its code names, and the functions and classes of the same module that it calls.
    """
    return _holds(fn, set(), 0) or any(_holds(value, set(), 1) for value in options.values())


def _holds(value: Any, seen: set[int], depth: int) -> bool:
    if id(value) in seen or depth > DEEP:
        return False
    seen.add(id(value))
    if _is_array(value):
        return True
    if isinstance(value, (str, bytes)) or inspect.ismodule(value):
        return False
    if isinstance(value, Mapping):
        return any(_holds(v, seen, depth + 1) for v in value.values())
    if isinstance(value, (Sequence, set)):
        # A tuple is an option, as a stride is; a list may be labels.
        numbers = isinstance(value, list) and sum(isinstance(v, (int, float)) for v in value) > 1
        return numbers or any(_holds(v, seen, depth + 1) for v in list(value)[:100])
    if isinstance(value, functools.partial):
        return _holds(value.func, seen, depth) or any(
            _holds(v, seen, depth + 1) for v in (*value.args, *value.keywords.values())
        )
    if inspect.isclass(value):
        own = [v for v in vars(value).values() if not inspect.isclass(v)]
        return any(_holds(getattr(v, "__func__", v), seen, depth + 1) for v in own if callable(v) or _static(v))
    if inspect.ismethod(value):
        return _holds(value.__self__, seen, depth + 1) or _holds(value.__func__, seen, depth)
    code = getattr(value, "__code__", None)
    if code is not None:
        return any(_holds(v, seen, depth + 1) for v in _reached(value, code))
    wrapped = getattr(value, "__wrapped__", None)
    if wrapped is not None and _holds(wrapped, seen, depth):
        return True
    return any(_holds(v, seen, depth + 1) for v in getattr(value, "__dict__", {}).values())


def _static(value: Any) -> bool:
    return isinstance(value, (staticmethod, classmethod))


def _reached(fn: Any, code: Any) -> list[Any]:
    """What a function's code can name: its closure, its defaults, and globals of its own module."""
    found = [*(getattr(fn, "__defaults__", None) or ()), *(getattr(fn, "__kwdefaults__", None) or {}).values()]
    for cell in getattr(fn, "__closure__", None) or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            continue  # a cell that is not filled yet
    names = getattr(fn, "__globals__", {})
    home = names.get("__name__")
    for name in _names(code):
        value = names.get(name)
        own = getattr(value, "__module__", None) == home
        if value is not None and (_is_array(value) or own or isinstance(value, (list, tuple, dict))):
            found.append(value)
    return found


def _names(code: Any) -> set[str]:
    """The globals that a code object and those inside it name; attributes, as `w.T`, are none."""
    own = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(_names(c) for c in code.co_consts if inspect.iscode(c)))


def _is_array(value: Any) -> bool:
    shape = getattr(value, "shape", None)
    return isinstance(shape, tuple) and len(shape) > 0 and hasattr(value, "dtype")
