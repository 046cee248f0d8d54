"""jax's own functions for each op of the package, and optax's where jax has none; imports no torch."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from gradlab.kernels.adam import BETA1, BETA2, EPS, LR
from gradlab.kernels.sgd import LR as SGD_LR
from gradlab.profiling.native.native import Native


def linear(x, w, b=None, *, activation=None):
    """y[M N] = x[M K] w[K N] + b[N], then relu if requested."""
    # Without a word a float32 product is TF32 on a GPU; in half precision there is nothing to ask for.
    precision = jax.lax.Precision.HIGHEST if x.dtype in (jnp.float32, jnp.float64) else None
    y = jnp.dot(x, w, precision=precision)
    y = y if b is None else y + b
    return jax.nn.relu(y) if activation == "relu" else y


def relu(x):
    """y[E] = max(x[E], 0)."""
    return jax.nn.relu(x)


def cross_entropy(
    x, target, a=None, *, ignore_index=-100, reduction="mean", label_smoothing=0.0, z_loss=0.0, softcap=None
):
    """The negative log-likelihood of a target under softmax(x[M V]), of jax's own log_softmax and tanh."""
    z = x if softcap is None else softcap * jnp.tanh(x / softcap)
    log_p = jax.nn.log_softmax(z)
    if target.ndim == 2:
        valid, weight = jnp.ones(x.shape[0], bool), jnp.ones(x.shape[0], x.dtype)
        picked = (target * log_p if a is None else a * target * log_p).sum(1)
    else:
        valid = target != ignore_index
        t = jnp.where(valid, target, 0)
        weight = valid.astype(x.dtype) if a is None else jnp.where(valid, a[t], 0)
        picked = jnp.take_along_axis(log_p, t[:, None], 1)[:, 0] * (1 if a is None else a[t])
    y = -picked
    if label_smoothing:
        even = (log_p if a is None else a * log_p).mean(1)
        y = (1 - label_smoothing) * y - label_smoothing * even
    y = jnp.where(valid, y, 0)
    n = jnp.where(valid, z_loss * jax.nn.logsumexp(z, axis=1) ** 2, 0) if z_loss else jnp.zeros_like(y)
    if reduction == "mean":
        return y.sum() / weight.sum() + n.sum() / valid.sum().astype(n.dtype)
    return _reduced(y + n, reduction)


def linear_cross_entropy(h, w, t, b=None, a=None, *, logits_memory=0, **options):
    """cross_entropy of jnp.dot's logits, which lie in memory."""
    return cross_entropy(linear(h, w, b), t, a, **options)


def adam(p, g, m, v, lr=LR, x=None, *, beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=0.0, decoupled=False,
         maximize=False, step=1):  # fmt: skip
    """p'[E], m'[E], v'[E], x'[E]; optax's maximum is of the corrected v', so x goes in and comes out as such a one."""
    import optax

    g = -g if maximize else g

    if weight_decay and not decoupled:
        g = g + weight_decay * p
    count, correction = jnp.asarray(step - 1, jnp.int32), 1 - beta2**step
    if x is None:
        transform, state = optax.adam(lr, beta1, beta2, eps), optax.ScaleByAdamState(count, m, v)
    else:
        transform = optax.amsgrad(lr, beta1, beta2, eps)
        state = optax.ScaleByAmsgradState(count, m, v, x / correction)
    updates, (state, _) = transform.update(g, (state, optax.EmptyState()), p)
    decayed = p - lr * weight_decay * p if decoupled else p
    new = optax.apply_updates(decayed, updates)
    return (new, *state[1:3]) if x is None else (new, *state[1:3], state.nu_max * correction)


def sgd(
    p, g, b, *, lr=SGD_LR, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False, first=False
):
    """p'[E], b'[E]; optax has the first step, weight decay and the sign outside of its sgd, and no dampening."""
    import optax

    g = (-g if maximize else g) + weight_decay * p
    if not momentum:
        return p - lr * g, b
    if not first and dampening:
        b = momentum * b + (1 - dampening) * g
        return p - lr * (g + momentum * b if nesterov else b), b
    transform = optax.sgd(lr, momentum, nesterov)
    updates, (state, _) = transform.update(g, (optax.TraceState(0 * b if first else b), optax.EmptyState()), p)
    return optax.apply_updates(p, updates), state.trace


def conv2d(x, w, b=None, *, stride=1, padding=0, dilation=1, groups=1, activation=None):
    """y[B F P Q]; XLA takes these layouts as they are."""
    from gradlab.kernels.common.window import pads, pair

    around = pads(padding, w.shape[2:], pair(stride), pair(dilation), x.shape[2:])
    y = jax.lax.conv_general_dilated(
        x,
        w,
        pair(stride),
        around,
        rhs_dilation=pair(dilation),
        feature_group_count=groups,
        dimension_numbers=("NCHW", "OIHW", "NCHW"),
        precision=jax.lax.Precision.HIGHEST,
    )
    y = y if b is None else y + b[:, None, None]
    return jax.nn.relu(y) if activation == "relu" else y


def max_pool2d(x, *, kernel_size, **options):
    """y[B C P Q]."""
    from gradlab.kernels.max_pool2d import geometry

    geo = geometry(x.shape[2:], kernel_size, **options)
    around = ((0, 0), (0, 0), *((before, max(after, 0)) for before, after in geo.pads))
    window, steps, spread = ((1, 1, *pair) for pair in (geo.window, geo.stride, geo.dilation))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, steps, around, window_dilation=spread)


def sigmoid(x):
    """y[E] = 1 / (1 + exp(-x[E]))."""
    return jax.nn.sigmoid(x)


def tanh(x):
    """y[E] = tanh(x[E])."""
    return jnp.tanh(x)


def mse_loss(x, t, *, reduction="mean"):
    """The mean of (x[E] - t[E])^2."""
    return _reduced(jnp.square(x - t), reduction)


def binary_cross_entropy_with_logits(x, t, w=None, p=None, *, reduction="mean"):
    """The negative log-likelihood of t[E] under sigmoid(x[E])."""
    y = -(t if p is None else p * t) * jax.nn.log_sigmoid(x) - (1 - t) * jax.nn.log_sigmoid(-x)
    return _reduced(y if w is None else w * y, reduction)


def _reduced(y, reduction):
    return {"none": lambda y: y, "sum": jnp.sum, "mean": jnp.mean}[reduction](y)


NATIVE = {
    "conv2d": Native("lax.conv_general_dilated", conv2d),
    "linear": Native("jnp.dot", linear),
    "max_pool2d": Native("lax.reduce_window", max_pool2d),
    "relu": Native("jax.nn.relu", relu),
    "mse_loss": Native("jnp.square", mse_loss),
    "binary_cross_entropy_with_logits": Native("jax.nn.log_sigmoid", binary_cross_entropy_with_logits),
    "sigmoid": Native("jax.nn.sigmoid", sigmoid),
    "tanh": Native("jnp.tanh", tanh),
    "cross_entropy": Native("jax.nn.log_softmax", cross_entropy),
    "linear_cross_entropy": Native("jnp.dot, jax.nn.log_softmax", linear_cross_entropy),
    "adam": Native("optax.adam", adam, needs="optax"),
    "sgd": Native("optax.sgd", sgd, needs="optax"),
}


def precise() -> AbstractContextManager[Any]:
    """A context in which float32 products are float32 products: any, the natives above say it themselves.

    `jax.default_matmul_precision` would reach into the hand-written kernels too.
    """
    return nullcontext()


def widen(array: jax.Array) -> jax.Array:
    """The array in float32 where it is in half precision, else as it is."""
    return array.astype(jnp.float32) if array.dtype in (jnp.float16, jnp.bfloat16) else array


@contextmanager
def fresh(folder: str) -> Iterator[None]:
    """Within it compilers find nothing, neither in memory nor on disk, and keep what they make in `folder`."""
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    _set(settings)
    try:
        yield
    finally:
        _set(before)


def _set(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    forget()


def forget() -> None:
    """Drop compiled programs and cached memory, so that no case affects another."""
    jax.clear_caches()
