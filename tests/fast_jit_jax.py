"""`jax.jit` for programs of which the algebra is tested, not the machine code: compiled in a third of the time.

Such a program is a user's down to XLA's operations, of which LLVM makes machine code without its passes. A derivative
or a map that is wrong is as wrong there, by far more than another order of additions does. What is said of precision,
bits, memory or donation is tested on programs that are compiled as a user's are, and so are values and gradients of
each op.
"""

import functools

import jax


@functools.cache
def options():
    """XLA's options, or none where this jaxlib has other ones."""
    wanted = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=wanted)()
    except Exception:  # What is unknown is refused by an error that no public name has.
        return {}
    return wanted if jax.default_backend() == "cpu" else {}


def jit(fn, **given):
    """`jax.jit`."""
    return jax.jit(fn, compiler_options=options(), **given)
