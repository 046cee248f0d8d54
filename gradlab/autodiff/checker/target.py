"""Loads `FILE.py::function`: the function, its arguments, its reference and its cases."""

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gradlab.autodiff.frameworks.side import side as side_of


@dataclass(frozen=True)
class Target:
    """A function, its arguments, and a reference implementation if the file has one."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    reference: Callable[..., Any] | None
    cases: Any


def load(text: str, shapes: str | None, side: str | None, seed: int) -> Target:
    """Find `FILE.py::function`.

    Its arguments are the first of these that exists: `shapes` ("x[3 4], w[4 5], t[3]: int<5", drawn for `side`); what
    `<function>_args` in the file holds or returns, a tuple; its parameters' defaults. `<function>_reference` and
    `<function>_cases` in the file are used if they exist.

    Raises:
        ValueError: no such file or function, no arguments, or shapes that do not parse.
    """
    path, _, name = text.partition("::")
    if not name or not path.endswith(".py"):
        raise ValueError(f"check: target is {text!r}, wanted an op's name or FILE.py::function")
    if not Path(path).is_file():
        raise ValueError(f"check: target is {text!r}, wanted a file that exists")
    module = _module(Path(path))
    fn = getattr(module, name, None)
    if not callable(fn):
        raise ValueError(
            f"check: function is {name!r}, wanted one of {path}: {', '.join(_functions(module)) or 'none'}"
        )
    reference, cases = getattr(module, f"{name}_reference", None), getattr(module, f"{name}_cases", None)
    return Target(fn, _arguments(module, fn, name, shapes, side, seed), reference, cases)


def _module(path: Path) -> ModuleType:
    """Import the file as a module, with its folder on sys.path for its own imports."""
    found = importlib.util.spec_from_file_location(path.stem, path)
    if found is None or found.loader is None:
        raise ValueError(f"check: target is {path}, wanted a Python file")
    module = importlib.util.module_from_spec(found)
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules.setdefault(path.stem, module)
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"check: target is {path} ({_said(error)}), wanted a file that can be imported") from error
    return module


def _said(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _functions(module: ModuleType) -> list[str]:
    return [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]


def _arguments(
    module: ModuleType, fn: Callable[..., Any], name: str, shapes: str | None, side: str | None, seed: int
) -> tuple[Any, ...]:
    if shapes is not None:
        return drawn(shapes, side or _side_of(module), seed)
    given = getattr(module, f"{name}_args", None)
    if given is not None:
        try:
            made = given() if callable(given) else given
        except Exception as error:
            raise ValueError(
                f"check: {name}_args raised {_said(error)}, wanted a tuple of arrays or a function that returns one"
            ) from error
        return tuple(made) if isinstance(made, (tuple, list)) else (made,)
    parameters = inspect.signature(fn).parameters.values()
    if parameters and all(p.default is not p.empty for p in parameters):
        return tuple(p.default for p in parameters if p.kind is not p.KEYWORD_ONLY)
    raise ValueError(
        f'check: arguments of {name} are missing, wanted --shapes "x[3 4], w[4 5]", or {name}_args beside it, '
        "a tuple of arrays or a function that returns one"
    )


def _side_of(module: ModuleType) -> str:
    """The framework that a file imports, if it imports exactly one."""
    found = {getattr(v, "__name__", "").split(".")[0] for v in vars(module).values() if inspect.ismodule(v)}
    sides = sorted(found & {"torch", "jax"})
    if len(sides) != 1:
        raise ValueError(f"check: target imports {' and '.join(sides) or 'no framework'}, wanted --side torch or jax")
    return sides[0]


def drawn(shapes: str, side: str, seed: int) -> tuple[Any, ...]:
    """Standard normal arrays of these shapes, and integers below a number: "x[3 4], t[3]: int<5".

    Raises:
        ValueError: the text does not parse.
    """
    pattern = r"\s*(\w+)\s*\[([\d\s,x]*)\]\s*(?::\s*int\s*<\s*(\d+))?\s*"
    if not re.fullmatch(rf"{pattern}(,{pattern})*", shapes):
        raise ValueError(f'check: shapes are {shapes!r}, wanted for example "x[3 4], w[4 5], t[3]: int<5"')
    rng = np.random.default_rng(seed)
    to = side_of(side)
    arrays = []
    with to.double():
        for _, sizes, below in re.findall(pattern, shapes):
            shape = tuple(int(n) for n in re.findall(r"\d+", sizes))
            array = rng.integers(0, int(below), shape) if below else rng.standard_normal(shape)
            arrays.append(to.put(array, "float64"))
    return tuple(arrays)
