"""Spec: an op's shapes, reference, costs, cases and tolerances, in NumPy only; everything else reads them from here."""

import functools
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from gradlab.base.signature import Array, Sizes, arrays_of
from gradlab.kernels.bounds import ALWAYS, NO_SPILLS, Bound

Arrays = dict[str, np.ndarray]
_EMPTY: Mapping[str, Any] = MappingProxyType({})

# Bits of the significand, the hidden one included: unit roundoff is 2^-bits.
_BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}
BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Case:
    """One set of sizes and options of an op.

    `use` is "check" for small float64 cases of awkward sizes, whose derivatives are compared with finite differences,
    "bench" for large ones that are timed, "bench gpu" for those timed on CUDA alone, and "inspect" for those whose
    kernels are read and executed as machine code only, with options that no reference has. `order` is how many times a
    case can be differentiated, where that is fewer times than its op.
    """

    name: str
    sizes: Mapping[str, int]
    static: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    use: str = "check"
    order: int = 3


@dataclass(frozen=True)
class Spec:
    """The description of an op, free of any framework.

    Attributes:
        name: the op's stem: `<name>_triton.py`, `<name>_pallas.py`, `<name>_torch.py`, `<name>_jax.py`.
        formula: one line of mathematics for tables.
        signature: `"x[M K], w[K N], b[N] -> y[M N]"`, the only statement of shapes; `t[M]: int` holds integers.
        wrt: the inputs that have a gradient.
        reference: the op in NumPy: arrays in the signature's order, options by name; returns one array or a tuple.
        flops: sizes and options -> {"forward": n, "backward": n}, an add and a multiply counting one each.
        cases: the sizes and options that are checked and timed.
        draw: generator, case, spec -> inputs; standard normal when not given.
        length: sizes -> number of terms in the op's longest sum, which scales every tolerance.
        derive: sizes and options -> further sizes that the signature names.
        order: how many times the op can be differentiated exactly; 3 stands for any number.
        grows: the axes along which a case is scaled to see time against size.
        tiles: by input, the tile of its gradient that one program of the compiled float64 kernels owns.
        saved: the residuals, in words.
        bounds: codegen bounds, which `gradlab inspect --check` checks.
        saved_slope: the largest derivative of a gradient, for each unit of dy, by a saved or intermediate result that
            is rounded to its dtype.
        source: reference to the literature.
    """

    name: str
    formula: str
    signature: str
    wrt: tuple[str, ...]
    reference: Callable[..., Any]
    flops: Callable[..., dict[str, int]]
    cases: tuple[Case, ...]
    draw: Callable[[np.random.Generator, Case, "Spec"], Arrays] | None = None
    length: Callable[[Sizes], int] = lambda sizes: 1
    derive: Callable[..., Mapping[str, Any]] = lambda sizes, **static: {}
    order: int = 2
    grows: tuple[str, ...] = ("E",)
    tiles: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: _EMPTY)
    saved: str = ""
    saved_slope: float = 0.0
    bounds: tuple[Bound, ...] = (*ALWAYS, NO_SPILLS)
    source: str = ""

    @functools.cached_property
    def inputs(self) -> tuple[Array, ...]:
        return arrays_of(self.signature.split("->")[0])

    @functools.cached_property
    def outputs(self) -> tuple[Array, ...]:
        return arrays_of(self.signature.split("->")[1])

    def at(self, case: Case) -> "OpCase":
        """The op at a case: its sizes, arrays, options and costs."""
        return OpCase(self, case)

    def select(self, use: str) -> tuple[Case, ...]:
        return tuple(c for c in self.cases if c.use == use)


@dataclass(frozen=True)
class OpCase:
    """An op at one of its cases: all that follows from both."""

    spec: Spec
    case: Case

    @functools.cached_property
    def sizes(self) -> Sizes:
        """The case's sizes and those derived from them."""
        return {**self.case.sizes, **self.spec.derive(self.case.sizes, **self.case.static)}

    @functools.cached_property
    def inputs(self) -> tuple[Array, ...]:
        """The inputs that the case has: the option `has_<input>`, set to False, leaves one out."""
        return tuple(a for a in self.spec.inputs if self.case.static.get(f"has_{a.name}", True))

    @functools.cached_property
    def results(self) -> tuple[Array, ...]:
        """The outputs that the case has: without the new value, x', of an input x that it leaves out."""
        absent = {f"{a.name}'" for a in self.spec.inputs} - {f"{a.name}'" for a in self.inputs}
        return tuple(a for a in self.spec.outputs if a.name not in absent)

    @functools.cached_property
    def wrt(self) -> tuple[int, ...]:
        """The places among `inputs` of those that have a gradient."""
        return tuple(i for i, a in enumerate(self.inputs) if a.name in self.spec.wrt)

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """The case's options without those that only say which inputs are there."""
        return {k: v for k, v in self.case.static.items() if not k.startswith("has_")}

    def bind(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn`, the op in some implementation, with the case's options: a function of the arrays alone."""
        return functools.partial(fn, **self.options)

    def shapes(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Shapes of the inputs, of the results' cotangents, and of the cotangents of the inputs' gradients."""
        given = tuple(a.shape(self.sizes) for a in self.inputs)
        return given, tuple(a.shape(self.sizes) for a in self.results), tuple(given[i] for i in self.wrt)

    def make(self, seed: int = 0) -> Arrays:
        """The inputs, float64 and int64, the same for the same seed."""
        rng = np.random.default_rng([seed, *self.case.sizes.values()])
        return (self.spec.draw or normal)(rng, self.case, self.spec)

    def flops(self) -> dict[str, int]:
        """FLOPs of "forward" and "backward", an add and a multiply counting one each."""
        return self.spec.flops(self.sizes, **self.case.static)

    def bytes(self, dtype: str) -> dict[str, int]:
        """Minimum memory traffic in bytes: every input read once, every result written once.

        Backward reads the inputs and the cotangents and writes one gradient for each of `wrt`.
        """

        def total(arrays: tuple[Array, ...]) -> int:
            return sum(math.prod(a.shape(self.sizes)) * (8 if a.integer else BYTES[dtype]) for a in arrays)

        forward = total(self.inputs) + total(self.results)
        return {"forward": forward, "backward": forward + total(tuple(self.inputs[i] for i in self.wrt))}

    def tolerance(self, dtype: str) -> float:
        """The largest error, relative to the largest value, that rounding in `dtype` explains.

        A sum of L terms carried in unit roundoff u errs by at most L u of the sum of magnitudes (Higham, Accuracy
        and Stability of Numerical Algorithms, 3.1); 8 covers the few roundings around it, and half precision is
        carried in float32 and rounded once.
        """
        length = 8 + self.spec.length(self.sizes)
        carried = 2.0 ** -max(_BITS[dtype], _BITS["float32"])
        return length * carried + 2.0 ** -_BITS[dtype]


def normal(rng: np.random.Generator, case: Case, spec: Spec) -> Arrays:
    """Standard normal values for every input that the case has."""
    at = spec.at(case)
    return {a.name: rng.standard_normal(a.shape(at.sizes)) for a in at.inputs}


def specs() -> dict[str, Spec]:
    """Every op of the lab by name, found by its files: an op is a stem with a `_triton` and a `_pallas` file."""
    folder = Path(__file__).parent
    stems = sorted(p.stem.removesuffix("_triton") for p in folder.glob("*_triton.py"))
    return {s: importlib.import_module(f"gradlab.kernels.{s}").SPEC for s in stems if (folder / f"{s}.py").exists()}


def spec(name: str) -> Spec:
    """The op of that name.

    Raises:
        ValueError: there is none.
    """
    found = specs()
    if name not in found:
        raise ValueError(f"op: name is {name!r}, wanted one of {', '.join(found)}")
    return found[name]
