"""A check inside jit that `jax.experimental.checkify` sees and that costs nothing without it.

checkify's own checks are effects: a jitted program that has one is called through Python, 150 microseconds a call. Here
the check is an operation that gives back its operand. It has no effect, lowers to nothing, and stays in the program
because what it gives is used; only checkify knows what stands behind it.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from gradlab.kernels.private.private_jax import error_checks

_guard = Primitive("gradlab_guard")
_guard.multiple_results = True
_guard.def_impl(lambda x, *, check, size: [x])
_guard.def_abstract_eval(lambda x, *, check, size: [x])
mlir.register_lowering(_guard, lambda ctx, x, *, check, size: [x])


def guarded(x: jax.Array, check: Callable[..., None]) -> jax.Array:
    """x, of which checkify makes `check(x, size)`, where size is x's.

    Args:
        check: calls `checkify.debug_check`; equal for calls that check the same. Under vmap its x has more axes in
            front, and `size` is still that of one x.
    """
    return _guard.bind(x, check=check, size=x.size)[0]


def _mapped(arrays: Any, axes: Any, **params: Any) -> tuple[list[jax.Array], list[int]]:
    return _guard.bind(jax.numpy.moveaxis(arrays[0], axes[0], 0), **params), [0]


def _checked(*given: Any, check: Callable[..., None], size: int) -> Any:
    """checkify's rule: that of a jitted function which makes the check, whatever else checkify hands its rules."""

    def run(x: jax.Array) -> jax.Array:
        check(x, size)
        return x

    (call,) = jax.make_jaxpr(jax.jit(run))(given[-1]).eqns
    return error_checks[call.primitive](*given, **call.params)


batching.primitive_batchers[_guard] = _mapped
error_checks[_guard] = _checked
