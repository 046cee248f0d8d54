"""Code as people write it around jax, each right, with the habits that a check may stumble over."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Made = tuple[Callable[..., Any], tuple[Any, ...]]
_rng = np.random.default_rng(0)


def _(*shape: int) -> jax.Array:
    return jnp.asarray(_rng.standard_normal(shape))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scaled(x: jax.Array, factor: float) -> jax.Array:
    return x * factor


scaled.defvjp(lambda x, factor: (x * factor, None), lambda factor, _, dy: (dy * factor,))


@jax.custom_vjp
def taken(x: jax.Array, places: jax.Array) -> jax.Array:
    return x[places]


def _taken_back(kept: Any, dy: jax.Array) -> Any:
    places, shape = kept
    return jnp.zeros(shape, dy.dtype).at[places].add(dy), np.zeros(places.shape, jax.dtypes.float0)


taken.defvjp(lambda x, i: (x[i], (i, x.shape)), lambda kept, dy: _taken_back(kept, dy))


@jax.custom_vjp
def taken_none(x: jax.Array, places: jax.Array) -> jax.Array:
    return x[places]


taken_none.defvjp(lambda x, i: (x[i], (i, x)), lambda kept, dy: (jnp.zeros_like(kept[1]).at[kept[0]].add(dy), None))


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    return jnp.logaddexp(x, 0)


softplus.defjvps(lambda dx, y, x: dx * jax.nn.sigmoid(x))


@jax.custom_vjp
def on_host(x: jax.Array) -> jax.Array:
    return jax.pure_callback(np.arctan, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


on_host.defvjp(
    lambda x: (on_host(x), x),
    lambda x, dy: (jax.pure_callback(lambda a, b: b / (1 + a * a), jax.ShapeDtypeStruct(x.shape, x.dtype), x, dy),),
)


@jax.custom_vjp
def single(x: jax.Array) -> jax.Array:
    return _square(x)


def _square(x: jax.Array) -> jax.Array:
    if x.dtype != jnp.float32:
        raise TypeError(f"wanted float32, got {x.dtype}")
    return x * x


single.defvjp(lambda x: (_square(x), x), lambda x, dy: (2 * dy * x,))


class Output(NamedTuple):
    """What a model gives."""

    logits: jax.Array
    count: int


def newton(a: jax.Array) -> jax.Array:
    """A loop of a fixed number of turns, differentiated through the solution alone."""
    return lax.custom_root(
        lambda y: y * y - a,
        jnp.ones_like(a),
        lambda f, y: lax.fori_loop(0, 40, lambda _, y: 0.5 * (y + a / y), y),
        lambda g, b: b / g(jnp.ones_like(b)),
    )


def forever(x: jax.Array) -> jax.Array:
    """A while_loop: forward mode alone."""
    return lax.while_loop(lambda c: c[1] < 3, lambda c: (jnp.sin(c[0]), c[1] + 1), (x, 0))[0]


def dropout(x: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key, 0.7, x.shape), x / 0.7, 0)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    return jax.nn.softmax(jnp.where(mask, q @ k.T, -jnp.inf)) @ v


def static(x: jax.Array, mode: str = "sin", *, times: int = 2) -> jax.Array:
    """Options that python reads."""
    return getattr(jnp, mode)(x) * times


def concrete(x: jax.Array) -> jax.Array:
    """Reads a value: not under jit."""
    return x * 2 if float(jnp.sum(x)) > 0 else x * 3


def through_numpy(x: jax.Array) -> jax.Array:
    """Reads a shape and makes constants by NumPy."""
    return x * np.arange(x.shape[-1], dtype=np.float32)


def safe(x: jax.Array) -> jax.Array:
    ok = x > 0
    return jnp.where(ok, jnp.log(jnp.where(ok, x, 1.0)), 0.0)


def block(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    h = jax.nn.standardize(x) * p["scale"]
    return x + jax.nn.gelu(h @ p["up"]) @ p["down"]


def recurrent(p: dict[str, Any], xs: jax.Array) -> jax.Array:
    def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = jnp.tanh(x @ p["w"] + h @ p["u"])
        return h, h

    return lax.scan(step, jnp.zeros(p["u"].shape[0], xs.dtype), xs)[1]


def contrastive(a: jax.Array, b: jax.Array) -> jax.Array:
    a = a * lax.rsqrt(jnp.sum(a * a, -1, keepdims=True) + 1e-12)
    b = b * lax.rsqrt(jnp.sum(b * b, -1, keepdims=True) + 1e-12)
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(a @ b.T / 0.1)))


def experts(x: jax.Array, gate: jax.Array, w: jax.Array) -> jax.Array:
    weight, which = lax.top_k(jax.nn.softmax(x @ gate), 2)
    return jnp.einsum("nk,nkd->nd", weight, jnp.einsum("nd,nkde->nke", x, w[which]))


def sorted_rows(x: jax.Array) -> Any:
    order = jnp.argsort(x, -1)
    return jnp.take_along_axis(x, order, -1), order


def segments(x: jax.Array, ids: jax.Array) -> jax.Array:
    return jax.ops.segment_sum(x, ids, 3)


def labels(x: jax.Array, t: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), t[:, None], 1))


def conditional(x: jax.Array) -> jax.Array:
    return lax.cond(jnp.sum(x) > 0, jnp.sin, lambda t: 2 * t, x)


def switched(x: jax.Array, n: jax.Array) -> jax.Array:
    return lax.switch(n, [jnp.sin, jnp.cos, jnp.tanh], x)


def penalty(x: jax.Array, w: jax.Array) -> jax.Array:
    g = jax.grad(lambda t: jnp.sum(jnp.tanh(t @ w)))(x)
    return jnp.mean((jnp.sqrt(jnp.sum(g * g, -1) + 1e-12) - 1) ** 2)


WRITTEN: dict[str, Callable[[], Made]] = {
    "nondiff_argnums": lambda: (lambda x: scaled(x, 1.5), (_(3, 4),)),
    "float0": lambda: (taken, (_(4, 3), jnp.array([0, 2, 2]))),
    "None for integers": lambda: (taken_none, (_(4, 3), jnp.array([0, 2, 2]))),
    "custom_jvp": lambda: (softplus, (_(3, 4),)),
    "on the host": lambda: (on_host, (_(3, 4),)),
    "float32 alone": lambda: (single, (_(3, 4).astype(jnp.float32),)),
    "a NamedTuple": lambda: (lambda x: Output(jnp.sin(x), 3), (_(3, 4),)),
    "a NamedTuple in": lambda: (lambda o: o.logits * o.count, (Output(_(3), jnp.array(3)),)),
    "custom_root": lambda: (newton, (jnp.abs(_(3)) + 0.5,)),
    "while_loop": lambda: (forever, (_(3),)),
    "a typed key": lambda: (dropout, (_(3, 4), jax.random.key(0))),
    "an old key": lambda: (dropout, (_(3, 4), jax.random.PRNGKey(0))),
    "a masked attention": lambda: (attention, (_(3, 4), _(5, 4), _(5, 2), jnp.tri(3, 5, 1, dtype=bool))),
    "options": lambda: (functools.partial(static, mode="cos"), (_(3),)),
    "static_argnames": lambda: (
        functools.partial(jax.jit(static, static_argnames=("mode", "times")), mode="cos"),
        (_(3),),
    ),
    "not under jit": lambda: (concrete, (_(3),)),
    "NumPy's constants": lambda: (through_numpy, (_(3, 4),)),
    "a safe logarithm": lambda: (safe, (_(3, 4),)),
    "parameters": lambda: (block, ({"scale": _(4), "up": _(4, 8), "down": _(8, 4)}, _(3, 4))),
    "recurrent": lambda: (recurrent, ({"w": _(3, 4), "u": _(4, 4)}, _(5, 3))),
    "contrastive": lambda: (contrastive, (_(4, 3), _(4, 3))),
    "a mixture of experts": lambda: (experts, (_(5, 4), _(4, 3), _(3, 4, 4))),
    "sorted with places": lambda: (sorted_rows, (_(3, 4),)),
    "segments": lambda: (segments, (_(5, 2), jnp.array([0, 0, 1, 2, 2]))),
    "labels": lambda: (labels, (_(3, 4), jnp.array([0, 3, 1]))),
    "cond": lambda: (conditional, (_(3),)),
    "switch": lambda: (switched, (_(3), jnp.array(1))),
    "a gradient inside": lambda: (penalty, (_(3, 4), _(4, 2))),
    "checkpoint inside": lambda: (jax.checkpoint(lambda x: jnp.sin(jnp.exp(x))), (_(3),)),
    "vmap inside": lambda: (jax.vmap(lambda x, w: jnp.tanh(x @ w), (0, None)), (_(3, 4), _(4, 2))),
    "jit inside": lambda: (jax.jit(lambda x: jnp.sin(x)), (_(3),)),
    "hessian inside": lambda: (jax.hessian(lambda x: jnp.prod(jnp.sin(x))), (_(3),)),
    "cummax": lambda: (lambda x: lax.cummax(x, axis=1), (_(3, 4),)),
    "at.set": lambda: (lambda x, v: x.at[1].set(v), (_(3, 4), _(4))),
    "at.max": lambda: (lambda x, v: x.at[jnp.array([0, 2])].max(v), (_(3, 4), _(2, 4))),
    "dynamic_slice": lambda: (lambda x, i: lax.dynamic_slice(x, (i, 0), (2, 4)), (_(5, 4), jnp.array(1))),
    "rotary": lambda: (
        lambda x: (lax.complex(x[..., ::2], x[..., 1::2]) * jnp.exp(1j * jnp.arange(2))).real,
        (_(3, 4),),
    ),
    "fft": lambda: (lambda x: jnp.abs(jnp.fft.rfft(x)), (_(3, 8),)),
    "a complex result": lambda: (lambda x: jnp.fft.rfft(x), (_(3, 8),)),
    "eigh": lambda: (lambda a: jnp.linalg.eigvalsh(a + a.T), (_(3, 3),)),
    "cholesky": lambda: (lambda a: jnp.linalg.cholesky(a @ a.T + jnp.eye(3)), (_(3, 3),)),
    "norm with an epsilon": lambda: (lambda x: jnp.sqrt(jnp.sum(x * x, -1) + 1e-12), (_(3, 4),)),
    "interp": lambda: (lambda x: jnp.interp(x, jnp.arange(4.0), jnp.arange(4.0) ** 2), (jnp.abs(_(5)),)),
    "bfloat16 inside": lambda: (lambda x: (x.astype(jnp.bfloat16) * 2).astype(x.dtype), (_(3, 4),)),
    "float16 in": lambda: (lambda x: jnp.sum(jnp.square(x.astype(jnp.float32))), (_(3, 4).astype(jnp.float16),)),
    "float32": lambda: (lambda x, w: jnp.tanh(x @ w), (_(3, 4).astype(jnp.float32), _(4, 2).astype(jnp.float32))),
    "an integer result": lambda: (lambda x: (jnp.argmax(x, -1), jnp.max(x, -1)), (_(3, 4),)),
    "a float that is stopped": lambda: (lambda x: {"y": jnp.sin(x), "mean": lax.stop_gradient(x.mean())}, (_(3, 4),)),
    "an unused argument": lambda: (lambda x, w: jnp.sin(x), (_(3), _(3))),
    "one number": lambda: (jnp.sin, (jnp.asarray(0.3),)),
    "no element": lambda: (lambda x: jnp.sum(jnp.sin(x)), (_(0, 3),)),
    "weak": lambda: (lambda x: x * 2.0, (jnp.asarray(0.5),)),
    "many orders": lambda: (lambda x: x * jnp.logspace(-12, 12, 12).reshape(3, 4), (_(3, 4),)),
    "None in": lambda: (lambda x, b: x if b is None else x + b, (_(3), None)),
    "debug.print": lambda: (lambda x: (jax.debug.callback(lambda t: None, x), jnp.sin(x))[1], (_(3),)),
    "linearize inside": lambda: (lambda x: jax.jvp(jnp.sin, (x,), (jnp.ones_like(x),))[1], (_(3),)),
    "associative_scan": lambda: (lambda x: lax.associative_scan(jnp.multiply, x), (_(5),)),
    "odeint": lambda: (lambda y: _odeint(y), (_(2),)),
    "remat of a scan": lambda: (
        jax.checkpoint(lambda x: lax.scan(lambda c, r: (jnp.tanh(c + r), c), jnp.zeros(4), x)),
        (_(3, 4),),
    ),
}


def _odeint(y: jax.Array) -> jax.Array:
    from jax.experimental.ode import odeint

    return odeint(lambda y, t: -y * jnp.cos(t), y, jnp.linspace(0.0, 1.0, 3))


if __name__ == "__main__":
    from tests.sweeps.sweep import Sample, share, summary, sweep

    def doubled(name: str) -> Callable[[], Made]:
        def make() -> Made:
            with jax.enable_x64(True):
                return WRITTEN[name]()

        return make

    # A fork of jax's threads is none: in this process, one after the other.
    print(summary(sweep(share([Sample(name, doubled(name)) for name in WRITTEN]), isolated=False), {}))
