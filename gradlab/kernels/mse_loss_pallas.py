"""The sum of squared differences, and the product of differences that is its pullback, as Pallas kernels."""

import functools

import jax

from gradlab.kernels.common import reduce_pallas
from gradlab.kernels.common.elementwise_pallas import elementwise
from gradlab.kernels.runtime.launch_pallas import accumulator


# fmt: off
def _differences_kernel(*refs, num, den, has_b, has_t):
    """y[m n] = num / den (a[m n] - b[m n]) (x[m n] - t[m n]); grid (M/BM, 1); a program owns y[BM N]."""
    *ins, y_ref = refs
    values = [ref[...].astype(accumulator(y_ref.dtype)) for ref in ins]
    a = values.pop(0)
    if has_b:
        a -= values.pop(0)
    x = values.pop(0)
    if has_t:
        x -= values.pop(0)
    # Divided here: an export may leave the number of elements open.
    scale = num / den if den else 0.0
    y_ref[...] = (a * x * scale).astype(y_ref.dtype)
# fmt: on


def squares(x: jax.Array, t: jax.Array, den: int) -> jax.Array:
    """y = the sum of (x - t)^2, over `den`. 2 E read."""
    total = reduce_pallas.sum_of(lambda x, t: (x - t) * (x - t), "squares", x, t)
    return (total / den).astype(x.dtype)


def differences(a: jax.Array, b: jax.Array | None, x: jax.Array, t: jax.Array | None, num: int, den: int) -> jax.Array:
    """y = num / den (a - b) (x - t), one by one, zeros for b or t that is None. Up to 4 E read."""
    kernel = functools.partial(_differences_kernel, num=num, den=den, has_b=b is not None, has_t=t is not None)
    return elementwise(kernel, [x.dtype], *(v for v in (a, b, x, t) if v is not None))[0]
