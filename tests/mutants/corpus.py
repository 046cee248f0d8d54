"""What a subject of the corpus is: a function, inputs for it, and what is wrong with its backward."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

KINDS = ("gross", "local", "small", "contract", "order-2", "nondeterministic", "input-dependent")
CONTROLS = ("right", "awkward")

# How a fault is seen. Beside "plain" a checker that only ever compares one pullback on fresh inputs is blind to it.
SHOWS = (
    "plain",  # the pullback of a random contiguous cotangent on `make`'s inputs
    "forward",  # the value differs from `reference`; the backward fits the wrong value
    "second",  # the derivative of the gradient is wrong, missing or raises
    "repeat",  # the same call again gives other bits
    "stale",  # other inputs of the same shapes, after a first call
    "trigger",  # only on `trigger`'s inputs, of `sizes` where these are other axis lengths
    "expanded",  # a cotangent with a stride of 0
    "strided-cotangent",  # a transposed cotangent
    "strided",  # transposed inputs
    "subset",  # only one input asks for a gradient
    "twice",  # backward again over a retained graph
    "changes-cotangent",  # the cotangent is written to
    "changes-input",  # an input is written to
    "unwritten",  # part of a gradient is memory that nobody wrote
    "one-output",  # only the first, or only the second, output is used
    "empty",  # inputs with no rows: `trigger`'s
    "kept",  # a gradient handed out before changes when backward runs again
    "vmap",  # under jax.vmap
    "jit",  # under jax.jit
    "composed",  # the function on its own result
    "results",  # a result handed out before changes when the function runs again
    "same",  # one array as all arguments
    "pair",  # only two inputs ask for a gradient
    "special-dy",  # a cotangent that is sparse, of equal numbers, tiny, large or zero
    "hidden",  # elements of a gradient far below the largest, each against itself
    "given",  # the arrays as `given` makes them of `make`'s
    "per-sample",  # vmap of the gradient, of all inputs or of one
    "autocast",  # under bfloat16 autocast
    "grad-there",  # a .grad that is there already, of the input's layout or another
    "forward-mode",  # the derivative along a direction
    "x64-off",  # on jax as it is run by default, in float32
)

Arrays = tuple[np.ndarray, ...]
Make = Callable[[np.random.Generator, int], Arrays]


@dataclass(frozen=True)
class CheckSubject:
    """A function to check. `blames` are the parameters with a wrong gradient, at order 2 those whose gradient has
    wrong derivatives; it is empty for a wrong forward and where all gradients may be hit. `given` makes of the side's
    arrays those that a user has: of several dtypes, or strided."""

    name: str
    kind: str
    side: str
    fn: Callable
    make: Make
    blames: tuple[str, ...] = ()
    reference: Callable | None = None
    dtype: str = "float64"
    order: int = 2
    note: str = ""
    truth: Callable | None = None
    trigger: Make | None = None
    shows: str = "plain"
    given: Callable[[list], list] = list
    sizes: dict | None = None


@dataclass(frozen=True)
class Family:
    """A right function, its inputs, and how to build a wrong one from a fault."""

    prefix: str
    side: str
    build: Callable[[Callable | None], Callable]
    make: Make
    truth: Callable

    def name(self, fault: str) -> str:
        """Twins on jax have the same name with the side after it."""
        return f"{self.prefix}-{fault}" + ("-jax" if self.side == "jax" else "")

    def right(self, **fields) -> CheckSubject:
        """The same hand-written rule without a fault."""
        base = CheckSubject(self.name("by-hand"), "right", self.side, self.build(None), self.make, truth=self.truth)
        return replace(base, **fields)

    def wrong(self, name: str, kind: str, blames: str, fault: Callable | None, note: str, **fields) -> CheckSubject:
        """A mutant; `blames` are names with spaces between, `fault(grads, dy, args, ctx)` returns the wrong grads."""
        fn = self.build(fault)
        made = CheckSubject(self.name(name), kind, self.side, fn, self.make, tuple(blames.split()), note=note)
        return replace(made, **{"truth": self.truth, **fields})


def change(index: int, edit: Callable) -> Callable:
    """The fault that edits one gradient and leaves the others: `edit(gradient)`."""

    def fault(grads, dy, args, ctx):
        return (*grads[:index], edit(grads[index]), *grads[index + 1 :])

    return fault


def swap(i: int, j: int) -> Callable:
    """The fault that returns two gradients in each other's place."""

    def fault(grads, dy, args, ctx):
        out = list(grads)
        out[i], out[j] = out[j], out[i]
        return tuple(out)

    return fault


def load(side: str) -> list[CheckSubject]:
    """All subjects of a side, mutants and controls, file by file; imports its framework."""
    paths = sorted(Path(__file__).parent.glob(f"*_{side}.py"))
    modules = [importlib.import_module(f"tests.mutants.{path.stem}") for path in paths]
    return [subject for module in modules for subject in getattr(module, "SUBJECTS", ())]
