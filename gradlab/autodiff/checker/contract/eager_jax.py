"""Whether a function is run without jit: not where that costs much, or can show nothing that jit does not."""

from typing import Any

import jax

from gradlab.autodiff.checker.core.equations_jax import equations
from gradlab.autodiff.checker.core.subject import Subject
from gradlab.kernels.private.private_jax import is_jaxs_own

# Operations that are compiled one by one, at some hundredths of a second each.
MOST = 40
# What a program calls Python or a rule for: where there is no jit, that meets arrays in place of tracers.
_BY_HAND = ("custom_vjp", "custom_jvp", "custom_vmap", "custom_lin", "custom_transpose", "callback")


def by_hand(s: Subject) -> bool:
    """Whether the function goes through a rule, or a callback, that is not jax's own."""
    return any(
        any(word in equation.primitive.name for word in _BY_HAND) and not _jax_own(equation)
        for equation in equations(jax.make_jaxpr(s.flat)(*s.put(s.arrays)).jaxpr)
    )


def too_many(s: Subject, cotangents: tuple[Any, ...]) -> int:
    """How many different operations its pullback is made of, where these are more than `MOST`; 0 otherwise."""
    program = jax.make_jaxpr(s.pulled)(s.put(s.arrays), cotangents)
    count = len({f"{e.primitive} {[v.aval for v in e.invars]} {e.params}" for e in program.jaxpr.eqns})
    return count if count > MOST else 0


def _jax_own(equation: Any) -> bool:
    """Whether the rule is of a function of jax itself, as that of jax.nn.relu."""
    held = getattr(equation.params.get("call_jaxpr"), "jaxpr", None)
    return is_jaxs_own(held)
