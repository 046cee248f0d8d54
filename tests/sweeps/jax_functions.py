"""Functions of jnp, jax.nn, lax and jax.scipy through the check: `python -m tests.sweeps.jax_functions`, minutes."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, nn
from jax.scipy import special

from tests.sweeps.sweep import Sample, share, summary, sweep

Shape = tuple[int, ...]
# A function, the shapes of its arguments, and whether they are to be positive.
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Shape, ...], bool]] = {
    **{f"jnp.{n}": (getattr(jnp, n), ((3, 4),), False) for n in (
        "sin", "cos", "tanh", "exp", "abs", "square", "sum", "mean", "var", "std", "max", "min", "prod", "cumsum", "sort",
        "median", "ptp", "trace", "diff", "ravel", "transpose", "arctan", "sinh", "expm1", "sinc", "nan_to_num", "flip",
    )},
    **{f"jnp.{n}": (getattr(jnp, n), ((3, 4),), True) for n in ("log", "log1p", "sqrt", "reciprocal", "cbrt", "log2")},
    **{f"jnp.{n}": (getattr(jnp, n), ((3, 4), (3, 4)), False) for n in (
        "add", "multiply", "maximum", "minimum", "hypot", "arctan2", "logaddexp", "vdot",
    )},
    **{f"jnp.{n}": (getattr(jnp, n), ((3, 4), (4, 5)), False) for n in ("matmul", "dot")},
    **{f"jnp.linalg.{n}": (getattr(jnp.linalg, n), ((3, 3),), False) for n in ("inv", "det", "norm", "qr", "svd", "slogdet")},
    "jnp.linalg.solve": (jnp.linalg.solve, ((3, 3), (3, 2)), False),
    **{f"jax.nn.{n}": (getattr(nn, n), ((3, 4),), False) for n in (
        "relu", "relu6", "sigmoid", "softplus", "silu", "gelu", "elu", "selu", "celu", "leaky_relu", "softmax",
        "log_softmax", "logsumexp", "hard_tanh", "hard_swish", "log_sigmoid", "soft_sign", "standardize", "glu", "mish",
    )},
    **{f"jax.scipy.special.{n}": (getattr(special, n), ((3, 4),), n in ("gammaln", "digamma", "entr")) for n in (
        "erf", "erfc", "expit", "gammaln", "digamma", "entr", "i0e", "i1e", "log_ndtr", "ndtr", "logsumexp",
    )},
    "jax.lax.rsqrt": (lax.rsqrt, ((3, 4),), True),
    "jax.lax.cumprod": (lax.cumprod, ((3, 4),), False),
    "jax.lax.cummax": (lax.cummax, ((3, 4),), False),
    "jax.lax.top_k": (lambda x: lax.top_k(x, 2)[0], ((3, 4),), False),
    "jax.lax.stop_gradient": (lambda x: (jnp.sin(x), lax.stop_gradient(x)), ((3, 4),), False),
    "jax.lax.conv": (lambda x, w: lax.conv(x, w, (1, 1), "SAME"), ((1, 2, 4, 4), (3, 2, 3, 3)), False),
    "jax.lax.scan": (lambda x: lax.scan(lambda c, r: (jnp.tanh(c + r), c), jnp.zeros_like(x[0]), x), ((3, 4),), False),
}  # fmt: skip


# What jax gives that is no gradient, looked at one by one.
KNOWN = {
    "jnp.std": "NaN where all elements are equal",
    "jnp.linalg.norm": "NaN at 0",
    "jnp.linalg.qr": "NaN for a singular matrix whose factors are still smooth",
    "optax.cosine_similarity": "NaN for a row of zeros",
}


def _others() -> dict[str, tuple[Callable[..., Any], tuple[Shape, ...], bool]]:
    """Of optax and flax, where they are installed."""
    found: dict[str, tuple[Callable[..., Any], tuple[Shape, ...], bool]] = {}
    if importlib.util.find_spec("optax"):
        import optax

        two = ("l2_loss", "huber_loss", "cosine_similarity", "log_cosh", "sigmoid_binary_cross_entropy", "hinge_loss")
        found |= {f"optax.{n}": (getattr(optax, n), ((3, 4), (3, 4)), False) for n in two}
        found["optax.softmax_cross_entropy"] = (
            lambda x, t: optax.softmax_cross_entropy(x, nn.softmax(t)),
            ((3, 4), (3, 4)),
            False,
        )
        for n in ("adam", "sgd", "lion", "rmsprop"):
            found[f"optax.{n}"] = (functools.partial(_step, getattr(optax, n)(0.1)), ((4,), (4,)), False)
    if importlib.util.find_spec("flax"):
        import flax.linen as linen

        for n, layer, shape in (
            ("Dense", linen.Dense(3), (2, 4)),
            ("LayerNorm", linen.LayerNorm(), (2, 4)),
            ("GroupNorm", linen.GroupNorm(2), (2, 4)),
            ("Conv", linen.Conv(3, (2,)), (2, 4, 3)),
            ("MultiHeadDotProductAttention", linen.MultiHeadDotProductAttention(2), (2, 3, 4)),
        ):
            # Parameters are drawn in float32, whose last bits depend on jit: once, outside the function.
            drawn = layer.init(jax.random.key(0), jnp.ones(shape))
            found[f"flax.{n}"] = (functools.partial(layer.apply, drawn), (shape,), False)
    return found


def _step(optimizer: Any, gradient: jax.Array, parameters: jax.Array) -> jax.Array:
    return optimizer.update(gradient, optimizer.init(parameters), parameters)[0]


FUNCTIONS |= _others()


def _maker(name: str) -> Callable[[], tuple[Callable[..., Any], tuple[Any, ...]]]:
    fn, shapes, positive = FUNCTIONS[name]

    def make() -> tuple[Callable[..., Any], tuple[Any, ...]]:
        rng = np.random.default_rng(0)
        drawn = [rng.standard_normal(shape) for shape in shapes]
        with jax.enable_x64(True):
            return fn, tuple(jnp.asarray(np.abs(a) + 0.1 if positive else a, "float64") for a in drawn)

    return make


if __name__ == "__main__":
    # A fork of jax's threads is none: in this process, one after the other.
    print(summary(sweep(share([Sample(n, _maker(n)) for n in FUNCTIONS]), isolated=False, order=1), KNOWN))
