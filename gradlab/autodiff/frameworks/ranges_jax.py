"""Where jax's ops open their named ranges: on the host around an eager call, in the program's names inside a trace.

A host range inside `jax.jit` would open once, while the program is traced, and never again; `jax.named_scope` stays in
the compiled program's operation names, also in those of backward.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

from gradlab.kernels.runtime import ranges

P = ParamSpec("P")
R = TypeVar("R")


def public(op: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate the public function of `op`: a scope of its name; an eager call opens a range too, while that is on."""

    def decorate(fn: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(fn)
        def call(*args: P.args, **options: P.kwargs) -> R:
            if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, options))):
                with jax.named_scope(op):
                    return fn(*args, **options)
            if ranges.opener is None:
                return fn(*args, **options)
            with ranges.opener.call("jax", op, fn, args, options), jax.named_scope(op):
                return fn(*args, **options)

        return call

    return decorate
