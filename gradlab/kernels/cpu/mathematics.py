"""Mathematical functions as LLVM IR: on vectors of any width and on scalars; only `fmod` calls the C library.

    FUNCTIONS["exp"](b, "f32", x)     writes a call, at the emitter's width, and gives the result's name
    PREDICATES["isnan"](b, "f32", x)  the same, with a truth value in each lane for its result

Denormals, zeros of either sign, infinities, NaN and large arguments are right everywhere; scalar code and every width
give the same bits. ULPS is the largest error of each function.
"""

from collections.abc import Callable

from gradlab.kernels.cpu import mathematics_bessel as bessel
from gradlab.kernels.cpu import mathematics_error_function as error_function
from gradlab.kernels.cpu import mathematics_error_inverse as error_inverse
from gradlab.kernels.cpu import mathematics_exponential as exponential
from gradlab.kernels.cpu import mathematics_hyperbolic as hyperbolic
from gradlab.kernels.cpu import mathematics_inverse as inverse
from gradlab.kernels.cpu import mathematics_logarithm as logarithm
from gradlab.kernels.cpu import mathematics_power as power
from gradlab.kernels.cpu import mathematics_trigonometry as trigonometry
from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.mathematics_numbers import FORMATS, Number

# Largest errors in float32 and float64, in units of the last place of the correctly rounded result. Tests hold them.
ULPS = {
    "exp": (1.0, 1.0), "exp2": (1.0, 1.0), "expm1": (1.5, 2.0), "tanh": (1.0, 2.0), "sinh": (2.0, 2.0),
    "cosh": (1.5, 1.5), "log": (1.0, 1.0), "log2": (1.0, 1.5), "log10": (1.0, 1.5), "log1p": (1.0, 1.0),
    "sin": (1.0, 1.5), "cos": (1.0, 1.5), "tan": (2.0, 2.0), "asin": (1.5, 1.5), "acos": (1.5, 1.5), "atan": (2.0, 2.0),
    "asinh": (1.0, 3.0), "acosh": (1.0, 3.0), "atanh": (1.0, 3.0),
    "atan2": (2.0, 2.0), "erf": (1.0, 1.5), "erfc": (0.6, 4.0), "pow": (0.6, 1.5), "rsqrt": (0.6, 0.6),
    "cbrt": (0.6, 0.6), "hypot": (0.6, 1.5), "sqrt": (0.5, 0.5), "fmod": (0.0, 0.0),
}  # fmt: skip

Function = Callable[..., str]


def _entered(name: str, write: Callable[..., Number]) -> Function:
    """A formula as a function that is written into the module once."""

    def function(b: Emitter, element: str, *operands: str) -> str:
        _check(name, element)
        return b.helper(
            f"math.{name}", element, lambda *texts: write(*(Number(b, element, text) for text in texts)).text, *operands
        )

    return function


def _intrinsic(name: str) -> Function:
    """An LLVM intrinsic that every CPU has, correctly rounded or exact."""

    def function(b: Emitter, element: str, *operands: str) -> str:
        _check(name, element)
        return b.intrinsic(name, element, *operands)

    return function


def _remainder(b: Emitter, element: str, x: str, y: str) -> str:
    """x - y trunc(x / y), exact; LLVM calls the C library for it, lane by lane."""
    _check("fmod", element)
    return b.op("frem", element, x, y)


def _class(mask: int) -> Function:
    """Where a float is of one of LLVM's classes: 3 NaN, 0x204 infinite, 0x1f8 finite."""

    def function(b: Emitter, element: str, x: str) -> str:
        _check("a class of floats", element)
        name, kind = f"llvm.is.fpclass.{b.suffix(element)}", b.type(element)
        b.declare(name, b.type("i1"), f"{kind}, i32")
        return b.emit(f"call {b.type('i1')} @{name}({kind} {x}, i32 {mask})")

    return function


def _check(name: str, element: str) -> None:
    if element not in FORMATS:
        raise NotImplementedError(f"{name} of {element}, wanted f32 or f64: other floats are widened first")


FUNCTIONS: dict[str, Function] = {
    **{
        write.__name__: _entered(write.__name__, write)
        for write in (
            exponential.exp, exponential.exp2, exponential.expm1, exponential.tanh, exponential.sinh, exponential.cosh,
            logarithm.log, logarithm.log2, logarithm.log10, logarithm.log1p,
            trigonometry.sin, trigonometry.cos, trigonometry.tan,
            inverse.asin, inverse.acos, inverse.atan, inverse.atan2,
            error_function.erf, error_function.erfc,
            hyperbolic.asinh, hyperbolic.acosh, hyperbolic.atanh,
            power.pow, power.rsqrt, power.cbrt, power.hypot,
        )
    },
    **{name: _intrinsic(name) for name in ("sqrt", "copysign", "floor", "ceil", "trunc", "round", "rint", "nearbyint")},
    "abs": _intrinsic("fabs"),
    "fmod": _remainder,
}  # fmt: skip

# Further functions, which the C library does not have.
SPECIAL: dict[str, Function] = {
    write.__name__: _entered(write.__name__, write)
    for write in (
        error_inverse.erfinv,
        error_inverse.erfcinv,
        error_inverse.normcdf,
        error_inverse.normcdfinv,
        bessel.cyl_bessel_i0,
        bessel.cyl_bessel_i1,
    )
}

PREDICATES: dict[str, Function] = {"isnan": _class(0x3), "isinf": _class(0x204), "isfinite": _class(0x1F8)}
