"""`@sharded(rule)`: a function that launches kernels, as one operation that keeps sharded arrays sharded.

    @sharded("a[M K], b[K N], bias[N] -> y[M N]; sums K; adds bias")
    def matmul(a, b, bias): ...

The rule is a text of `sharding.py`, or a function of the same arguments that returns one. Its inputs are the
arrays among the arguments, in order; one that is None is left out. Any word that starts with a letter is an axis
letter, so what has leading axes of any number writes them out: `axes("M", 3)` is "M0 M1 M2".

On one device nothing changes. On a mesh each device runs the function on its parts, by the axes' kind:

- Auto: the partitioner decides at compilation, by the rule.
- Explicit: operands are resharded to one split, and results have its types. A sum over a split axis is replicated.
- Manual, inside `jax.shard_map`: each device runs the function on what it has.

`own={"V": fn}` replaces the function where V is split: `fn(axis_names, *arguments)` gets the mesh axes of V and the
arguments with their arrays' parts, may use collectives over these axes, and returns the parts that the rule says. What
is summed over V it sums itself; sums over other letters are made around it. Of several such letters one is split.

Under `jax.vmap` the mapped axis is one more letter, which may be split.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from gradlab.kernels.runtime.launch_pallas import apart, one_operation
from gradlab.kernels.runtime.partition_pallas import Rule, Splitting
from gradlab.kernels.runtime.sharding import sharding
from gradlab.kernels.runtime.traced_pallas import ByValue

A = ParamSpec("A")
R = TypeVar("R")


def sharded(
    rule: str | Callable[..., str], own: Mapping[str, Callable[..., Any]] | None = None
) -> Callable[[Callable[A, R]], Callable[A, R]]:
    """Decorate a function of arrays and settings with how devices may share its work."""
    own = own or {}

    def decorate(fn: Callable[A, R]) -> Callable[A, R]:
        names = inspect.signature(fn)

        @functools.wraps(fn)
        def call(*args: A.args, **options: A.kwargs) -> R:
            given = names.bind(*args, **options).arguments
            text = rule if isinstance(rule, str) else rule(*args, **options)
            arrays, of_arrays = apart((args, options))
            inputs = sharding(text).inputs
            there = [not (array.name in given and given[array.name] is None) for array in inputs]
            if sum(there) != len(arrays):
                wanted = f"{len(arrays)} inputs like the arrays of {fn.__name__}"
                raise TypeError(f"sharded: rule is {text!r}, wanted {wanted}")
            run = of_arrays(_spread(fn))
            special = tuple((letter, ByValue(of_arrays(_spread(part)))) for letter, part in own.items())
            splitting = Splitting(Rule.of(text, there, own), ByValue(run), special)
            return one_operation({"": run}, arrays, splitting)

        return call

    return decorate


def _spread(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given: fn(*given[:-2], *given[-2], **given[-1])


def axes(letter: str, count: int) -> str:
    """`count` axis letters: "M0 M1 M2"; one is "M"."""
    return letter if count == 1 else " ".join(f"{letter}{i}" for i in range(count))


def one_by_one(count: int, ndim: int, results: int = 1) -> str:
    """The rule of `results` arrays from `count` arrays of one shape, element by element."""
    shape = axes("E", ndim)
    one, other = (", ".join(f"{name}{i}[{shape}]" for i in range(n)) for name, n in (("x", count), ("y", results)))
    return f"{one} -> {other}"
