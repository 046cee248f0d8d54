"""Arrays that a function captures beside its arguments: inputs of other shapes would not match them."""

import dis
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# The depth to which called functions and containers are searched.
DEEP = 4


def captures_arrays(fn: Callable[..., Any], options: Mapping[str, Any]) -> bool:
    """Whether a function captures arrays, or lists of numbers.

    Searched are its closure, partials, default arguments, the object of a bound method, its options, the globals that
    its code names, and the functions and classes of the same module that it calls.
    """
    return _captures(fn, set(), 0) or any(_captures(value, set(), 1) for value in options.values())


def _captures(value: Any, seen: set[int], depth: int) -> bool:
    if id(value) in seen or depth > DEEP:
        return False
    seen.add(id(value))
    if _is_array(value):
        return True
    if isinstance(value, (str, bytes)) or inspect.ismodule(value):
        return False
    if type(value).__module__.partition(".")[0] == "triton":
        # A kernel reads what it is launched with; the lists in it are those of its launcher.
        return False
    if isinstance(value, Mapping):
        return any(_captures(v, seen, depth + 1) for v in value.values())
    if isinstance(value, (Sequence, set)):
        # A tuple is an option such as a stride; a list may hold labels.
        numbers = isinstance(value, list) and sum(isinstance(v, (int, float)) for v in value) > 1
        return numbers or any(_captures(v, seen, depth + 1) for v in list(value)[:100])
    if isinstance(value, functools.partial):
        return _captures(value.func, seen, depth) or any(
            _captures(v, seen, depth + 1) for v in (*value.args, *value.keywords.values())
        )
    if inspect.isclass(value):
        own = [v for v in vars(value).values() if not inspect.isclass(v)]
        return any(_captures(getattr(v, "__func__", v), seen, depth + 1) for v in own if callable(v) or _static(v))
    if inspect.ismethod(value):
        return _captures(value.__self__, seen, depth + 1) or _captures(value.__func__, seen, depth)
    code = getattr(value, "__code__", None)
    if code is not None:
        return any(_captures(v, seen, depth + 1) for v in _reached(value, code))
    wrapped = getattr(value, "__wrapped__", None)
    if wrapped is not None and _captures(wrapped, seen, depth):
        return True
    return any(_captures(v, seen, depth + 1) for v in getattr(value, "__dict__", {}).values())


def _static(value: Any) -> bool:
    return isinstance(value, (staticmethod, classmethod))


def _reached(fn: Any, code: Any) -> list[Any]:
    """The objects that a function's code can name: its closure, its defaults, and globals of its module."""
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
    """The globals that a code object and those nested in it name; attributes such as `w.T` are not globals."""
    own = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*(_names(c) for c in code.co_consts if inspect.iscode(c)))


def _is_array(value: Any) -> bool:
    shape = getattr(value, "shape", None)
    return isinstance(shape, tuple) and len(shape) > 0 and hasattr(value, "dtype")
