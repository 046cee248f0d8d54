"""Whether to run a function without jit: not if that is expensive, or shows nothing that jit does not."""

from typing import Any

import jax

from gradlab.autodiff.checker.core.jaxpr_jax import equations
from gradlab.autodiff.checker.core.subject import CheckSubject
from gradlab.kernels.private.private_jax import is_jaxs_own

# The most operations that are compiled one by one, at some hundredths of a second each.
MOST = 40
# Primitives that run Python or a custom rule, which without jit get arrays in place of tracers.
_CUSTOM = ("custom_vjp", "custom_jvp", "custom_vmap", "custom_lin", "custom_transpose", "callback")


def hand_written(s: CheckSubject) -> bool:
    """Whether the function calls a custom rule or a callback that is not jax's own."""
    return any(
        any(word in equation.primitive.name for word in _CUSTOM) and not _jax_own(equation)
        for equation in equations(jax.make_jaxpr(s.flat)(*s.put(s.arrays)).jaxpr)
    )


def too_many(s: CheckSubject, cotangents: tuple[Any, ...]) -> int:
    """The number of different operations in its pullback if more than `MOST`, else 0."""
    program = jax.make_jaxpr(s.pullback)(s.put(s.arrays), cotangents)
    count = len({f"{e.primitive} {[v.aval for v in e.invars]} {e.params}" for e in program.jaxpr.eqns})
    return count if count > MOST else 0


def _jax_own(equation: Any) -> bool:
    """Whether the rule belongs to jax itself, as that of jax.nn.relu."""
    inner = getattr(equation.params.get("call_jaxpr"), "jaxpr", None)
    return is_jaxs_own(inner)
