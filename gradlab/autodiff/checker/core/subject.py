"""The function under test at one point, seen through NumPy: its inputs, results and gradients."""

import copy
import importlib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gradlab.autodiff.checker.core.complex_arrays import PARTS, in_parts, split_complex
from gradlab.autodiff.checker.core.internals import Internals
from gradlab.autodiff.frameworks.side import SIDES, Side
from gradlab.autodiff.frameworks.side import side as side_of

# Float dtype -> its rounding unit.
UNITS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
FLOATS = tuple(UNITS)

# With at most this many input elements a program takes longer to compile than to run a hundred times.
SMALL = 2**16
# Seconds that one program for values and pullback may take; values alone take a third, and are needed a hundred times.
LONG = 0.005


class CheckSubject:
    """A function on one side, flattened: a list of arrays in, a tuple of float arrays out.

    Attributes:
        op, case: its names in the report.
        given: the original arrays; empty if the check generated the inputs.
        leaves: the same, complex ones split in two parts; arrays: the leaves as NumPy, floats in float64.
        names: of the leaves; results: of the float results.
        wrt: indices of the float leaves among all leaves; sparse ones are constants.
        origin: the original function; `fn` takes a module's parameters too.
        constants: indices of float leaves without a gradient, put in the working dtype.
        without_jit: the function does not run under jit.
        trusted: an op of this package, which takes every shape of its signature.
        differentiable: indices of the float results that require a gradient; all of them when None.
        flat: leaves -> float results, on the side's own arrays.
        compiled: (leaves, cotangents) -> the pullback of these, compiled where the side compiles.
        jitted: compiles another function of these arrays, for many calls.
        dtype: the lowest float dtype among the leaves.
        internals: what its forward does between arguments and results, as far as observed.
        working_dtype: the dtype of all computation: float64, or the leaves' own if the function takes no float64.
    """

    def __init__(
        self,
        side: Side,
        fn: Callable[..., Any],
        args: Sequence[Any],
        options: Mapping[str, Any],
        op: str = "",
        case: str = "given",
        names: Sequence[str] = (),
        results: Sequence[str] = (),
    ) -> None:
        self.side, self.fn, self.args, self.options, self.case = side, fn, tuple(args), dict(options), case
        self.origin = fn
        self.differentiable: list[int] | None = None
        self.constants: list[int] = []
        self.result_dtypes: list[str] = []
        self.trusted = self.without_jit = False
        self.jitted: Callable[[Callable[..., Any]], Callable[..., Any]]
        self._forward: Callable[..., tuple[Any, ...]]
        self.compiled: Callable[..., tuple[Any, ...]]
        self.op = op or getattr(fn, "__name__", type(fn).__name__)
        self.given, self._rebuild_given, paths = side.flatten(self.args)
        self.argument_names = list(names) or _parameters(fn, len(self.args))
        labels = [self.argument_names[int(path[0])] + path[1] for path in paths]
        self.leaves, self.names, self._rebuild = in_parts(side, self.given, labels, self._rebuild_given)
        self.dtypes = [side.dtype(leaf) for leaf in self.leaves]
        self.foreign = [side.foreign(leaf) for leaf in self.leaves]
        self.wrt = [i for i, dtype in enumerate(self.dtypes) if dtype in FLOATS and not self.foreign[i]]
        lowest = [d for d in reversed(FLOATS) if d in [self.dtypes[i] for i in self.wrt]]
        self.dtype = lowest[0] if lowest else "float64"
        self.working_dtype = "float64"
        self.internals = Internals()
        self.arrays = [
            side.take(leaf) if side.is_array(leaf) and not strange else leaf
            for leaf, strange in zip(self.leaves, self.foreign, strict=True)
        ]
        self.results = list(results)
        self.shapes: list[tuple[int, ...]] = []
        self.differentiate(self.wrt)

    @property
    def eps(self) -> float:
        """The machine epsilon of the working dtype."""
        return 2 * UNITS[self.working_dtype]

    @property
    def noise(self) -> float:
        """The relative rounding error of a value in the working dtype or in its result's own dtype."""
        return max(2 * UNITS["float64"], UNITS[self.working_dtype], *(UNITS[d] for d in self.result_dtypes))

    def flat(self, *leaves: Any) -> tuple[Any, ...]:
        """The float results that require a gradient, for the side's own arrays."""
        return self._with_gradient(self._floats(*leaves))

    def as_given(self, *given: Any) -> tuple[Any, ...]:
        """The same for arrays in place of `given`, complex ones not split."""
        return self._with_gradient(self._results(self._rebuild_given(given)))

    def _with_gradient(self, results: tuple[Any, ...]) -> tuple[Any, ...]:
        return (
            results
            if self.differentiable is None
            else tuple(results[k] for k in self.differentiable if k < len(results))
        )

    def _floats(self, *leaves: Any) -> tuple[Any, ...]:
        return self._results(self._rebuild(leaves))

    def _results(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """All float results, complex ones split in two parts."""
        results, _, _ = self.side.flatten(self.fn(*args, **self.options))
        floats = [y for y in results if self.side.is_array(y) and self.side.dtype(y) in (*FLOATS, *PARTS)]
        found, names = split_complex(self.side, [self.side.dense(y) for y in floats])
        self.results = self.results or names
        return tuple(found)

    def without_gradient(self) -> list[int]:
        """Restrict to results that require a gradient; the indices of the others."""
        found = self.side.differentiable(self._floats, self.put(self.arrays), self.wrt)
        self.differentiable = None if all(found) else [k for k, dtype in enumerate(found) if dtype]
        if self.differentiable is not None:
            self.compile()
        self.result_dtypes = [dtype for dtype in found if dtype]
        return [k for k, dtype in enumerate(found) if not dtype]

    def put(self, arrays: Sequence[np.ndarray], dtype: str = "") -> tuple[Any, ...]:
        """The side's arrays from NumPy's, on the device of the leaves."""
        return tuple(
            leaf
            if self.foreign[i] or (a is own and i not in self.wrt and i not in self.constants)
            else self.side.put(a, dtype or self.working_dtype, leaf)
            for i, (a, own, leaf) in enumerate(zip(arrays, self.arrays, self.leaves, strict=True))
        )

    def put_like_results(self, cotangents: Sequence[np.ndarray], dtype: str = "") -> tuple[Any, ...]:
        """Cotangents as the side's arrays."""
        own = (
            self.result_dtypes if len(self.result_dtypes) == len(cotangents) else [self.working_dtype] * len(cotangents)
        )
        return tuple(
            self.side.put(c, dtype or d, self.leaves[self.wrt[0]]) for c, d in zip(cotangents, own, strict=True)
        )

    def restrict(self, wrt: Sequence[int]) -> None:
        """Differentiate for these leaves only; the other float leaves become constants."""
        self.constants = [*self.constants, *(i for i in self.wrt if i not in wrt)]
        self.differentiate(wrt)

    def differentiate(self, wrt: Sequence[int], joined: bool = True) -> None:
        """Differentiate for these leaves; with `joined`, values and pullback are one program if the arrays are
        small."""
        self.wrt = list(wrt)
        self.pullback = self.side.pullback(self.flat, self.wrt)
        self.compile(joined)

    def compile(self, joined: bool = True) -> None:
        """Compile again, on a side that compiles."""
        self.jitted, self._forward, self.compiled = lambda fn: fn, self.flat, self.pullback
        if self.side.name == "jax" and not self.without_jit:
            small = sum(a.size for a in self.arrays if isinstance(a, np.ndarray)) <= SMALL
            rules = importlib.import_module("gradlab.autodiff.checker.core.compiled_jax")
            made = rules.Programs(self.flat, self.pullback, small, joined)
            self.jitted, self._forward, self.compiled = made.quick, made.values, made.pullback

    def choose_program(self) -> list[np.ndarray]:
        """The values by the program used from now on: one without the pullback if the joint one is slow."""
        start = time.perf_counter()
        values = self.values(self.arrays)
        if time.perf_counter() - start > LONG:
            self.compile(joined=False)
            values = self.values(self.arrays)
        return values

    def set_eager(self, set_eager: bool = True) -> None:
        """Switch jit off, or on again."""
        self.without_jit = set_eager
        self.compile()

    def values(self, arrays: Sequence[np.ndarray], dtype: str = "") -> list[np.ndarray]:
        """The float results as float64, computed in `dtype`; in the working dtype by default."""
        return [self.side.take(y) for y in self._forward(*self.put(arrays, dtype))]

    def gradients(
        self, arrays: Sequence[np.ndarray], cotangents: Sequence[np.ndarray], dtype: str = ""
    ) -> list[np.ndarray]:
        """The vjp of the function for its float leaves as float64, computed in `dtype`."""
        found = self.compiled(self.put(arrays, dtype), self.put_like_results(cotangents, dtype))
        return [self.side.take(g) for g in found]

    def both(self, moved: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Values at the subject's own inputs and at others."""
        return self.values(self.arrays), self.values(moved)

    def rebuilt(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments with these leaves in place of the given ones."""
        return self._rebuild(leaves)

    def with_arrays(self, arrays: Sequence[np.ndarray], case: str) -> "CheckSubject":
        """The same function on other inputs of the same dtypes."""
        other = copy.copy(self)
        other.case = case
        other.leaves = [
            leaf if strange else self.side.put(a, d, leaf)
            for a, d, leaf, strange in zip(arrays, self.dtypes, self.leaves, self.foreign, strict=True)
        ]
        other.args, other.given = self._rebuild(other.leaves), []
        other.arrays = [
            leaf if strange else self.side.take(leaf) for leaf, strange in zip(other.leaves, self.foreign, strict=True)
        ]
        return other


def subject(
    fn: Callable[..., Any], args: Sequence[Any], options: Mapping[str, Any], case: str = "given"
) -> CheckSubject:
    """The function at these arguments, on the side of their framework.

    Raises:
        TypeError: an argument is no array, or arguments of two frameworks.
        ValueError: none is of a float or complex dtype, or one holds NaN or infinity.
    """
    name = getattr(fn, "__name__", type(fn).__name__)
    side = _side(name, fn, args)
    functional, parameters = side.functional(fn)
    if parameters:
        names = ["", *_parameters(getattr(fn, "forward", fn), len(args))]
        made = CheckSubject(side, functional, (parameters, *args), options, name, case, names)
        made.origin = fn
        # A parameter has the name that its module gives it.
        made.names = [n[2:].replace("']", "", 1) if n.startswith("['") else n for n in made.names]
    else:
        made = CheckSubject(side, fn, args, options, case=case)
    for label, leaf in zip(made.names, made.leaves, strict=True):
        if not side.is_array(leaf):
            raise TypeError(
                f"check: {label} of {name} is of type {type(leaf).__name__}, wanted a {_KIND[side.name]}; "
                "bind constants with functools.partial"
            )
    if not made.wrt:
        dtypes = ", ".join(made.dtypes) or "no dtype at all"
        kinds = ", ".join((*FLOATS, *PARTS))
        raise ValueError(f"check: arguments of {name} are of {dtypes}, wanted at least one of {kinds}")
    for i in made.wrt:
        bad = ~np.isfinite(made.arrays[i])
        if bad.any():
            at = [int(k) for k in np.argwhere(bad)[0]]
            found = made.arrays[i][tuple(at)]
            raise ValueError(f"check: {made.names[i]} of {name} holds {found} at {at}, wanted finite numbers")
    return made


_KIND = {"torch": "torch tensor", "jax": "jax array"}


def _side(name: str, fn: Callable[..., Any], args: Sequence[Any]) -> Side:
    found: dict[str, None] = {}
    for leaf in _walk(args):
        found[type(leaf).__module__.split(".")[0].replace("jaxlib", "jax")] = None
    known = [s for s in SIDES if s in found]
    if len(known) > 1:
        raise TypeError(f"check: arguments of {name} are of {' and '.join(known)}, wanted arrays of one framework")
    if not known:
        came = ", ".join(sorted(found)) or "nothing"
        raise TypeError(f"check: arguments of {name} are of {came}, wanted torch tensors or jax arrays")
    return side_of(known[0])


def _walk(tree: Any) -> list[Any]:
    """Leaves of plain containers, enough to tell the framework of the arrays."""
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return [leaf for part in tree for leaf in _walk(part)]
    return [] if tree is None else [tree]


def _parameters(fn: Callable[..., Any], count: int) -> list[str]:
    """The names of the function's positional arguments."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names: list[str] = []
    for p in parameters:
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            names.append(p.name)
    return [names[i] if i < len(names) else f"argument {i}" for i in range(count)]
