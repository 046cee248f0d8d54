"""Adam for jax: a gradient transformation as optax has them, and the whole step fused, with a derivative."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradlab.autodiff import optimizer_jax as optimizer
from gradlab.autodiff.arguments import refuse
from gradlab.autodiff.optimizer_jax import GradientTransformation, Rate
from gradlab.autodiff.ranges_jax import public
from gradlab.kernels import adam_pallas as kernels
from gradlab.kernels.adam import BETA1, BETA2, EPS, LR


class AdamState(NamedTuple):
    """Steps taken (int32), and the first and second moment, trees like the parameters."""

    count: jax.Array  # type: ignore[assignment]  # optax's name for it hides tuple.count
    mu: Any
    nu: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _step_rule(p, g, m, v, scalars, update):
    """(p', m', v') of one step, in new memory.

    `update`: p' - p in place of p'; p may be None then, where no decay needs it.
    """
    return tuple(kernels.adam(p, g, m, v, scalars, update))


def _step_fwd(p, g, m, v, scalars, update):
    return step(p, g, m, v, scalars, update), (p, g, m, v, scalars)


def _step_bwd(update, kept, cotangents):
    p, g, m, v, scalars = kept
    dp, dg, dm, dv = pullback(jnp.zeros_like(g) if p is None else p, g, m, v, *cotangents, scalars)
    if update:
        dp = dp - cotangents[0]
    # Zeros, not None: they reach `fixed` when a scalar is differentiated, and only then.
    return None if p is None else dp, dg, dm, dv, jnp.zeros_like(scalars)


_step_rule.defvjp(_step_fwd, _step_bwd)
step = jax.jit(_step_rule, static_argnums=5)


fixed = optimizer.fixed("adam_step: no derivative for learning_rate, b1, b2, eps or weight_decay")


@jax.custom_vjp
def pullback(p, g, m, v, cp, cm, cv, scalars):
    """(dp, dg, dm, dv) for the cotangents of p', m', v'."""
    return tuple(kernels.adam_pullback(p, g, m, v, cp, cm, cv, scalars))


def _pullback_fwd(*args):
    raise NotImplementedError("adam_step: its second derivative is not implemented, wanted order 1")


pullback.defvjp(_pullback_fwd, _pullback_fwd)


def adam(learning_rate: Rate = LR, b1: float = BETA1,
         b2: float = BETA2, eps: float = EPS) -> GradientTransformation:  # fmt: skip
    """Adam as a gradient transformation; `optax.adam` by hand.

    update = -lr / (1 - b1^s) m' / (sqrt(v' / (1 - b2^s)) + eps) (gradlab/kernels/adam.py has the whole of it).

    Args:
        learning_rate: a number, an array, or a schedule of the steps taken; a run-time value.
        b1, b2, eps: as optax takes them.

    Returns:
        `init` and `update`, which optax.chain, optax.apply_updates and jax.jit take as their own.
    """

    def update(grads: Any, state: AdamState, params: Any = None) -> tuple[Any, AdamState]:
        return _over_leaves(None, grads, state, learning_rate, b1, b2, eps, 0.0, False, True)

    return GradientTransformation(init, update)


def adamw(learning_rate: Rate = LR, b1: float = BETA1,
          b2: float = BETA2, eps: float = EPS, weight_decay: float = 1e-4) -> GradientTransformation:  # fmt: skip
    """Adam with decoupled weight decay as a gradient transformation; `optax.adamw` by hand.

    update = -lr weight_decay p - the step of `adam`.

    Args:
        learning_rate, b1, b2, eps: as in `adam`.
        weight_decay: times the learning rate and the parameter, taken off it.

    Returns:
        `init` and `update`, which needs the parameters: without them it raises a ValueError.
    """

    def update(grads: Any, state: AdamState, params: Any = None) -> tuple[Any, AdamState]:
        if params is None:
            refuse("adamw", "params", "None", "the parameters: update(grads, state, params)")
        return _over_leaves(params, grads, state, learning_rate, b1, b2, eps, weight_decay, True, True)

    return GradientTransformation(init, update)


def init(params: Any) -> AdamState:
    """The state before the first step: no steps, moments of zero.

    Raises:
        TypeError: a parameter that is not an array of the lab's floating dtypes.
    """
    return AdamState(jnp.zeros((), jnp.int32), *(optimizer.zeros("adam", params) for _ in range(2)))


@public("adam")
def adam_step(params: Any, grads: Any, state: AdamState, *,
              learning_rate: Rate = LR, b1: float = BETA1,
              b2: float = BETA2, eps: float = EPS, weight_decay: float = 0.0,
              decoupled: bool = False) -> tuple[Any, AdamState]:  # fmt: skip
    """One whole step: parameters and both moments updated in one pass over each array.

    Args:
        params, grads: trees of the same structure, shapes and dtypes.
        state: of `adam().init(params)`, or of the step before. Under a jit that donates params and state, the new
            ones take their memory.
        learning_rate, b1, b2, eps: as in `adam`.
        weight_decay: added to the gradient, times the parameter.
        decoupled: weight decay as in `adamw`.

    Returns:
        The new parameters and state; differentiable once with respect to params, grads and the moments.

    Raises:
        ValueError: trees or shapes that differ.
        TypeError: dtypes that differ or are not floating.
        NotImplementedError: a second derivative, or one with respect to a scalar option.
    """
    return _over_leaves(params, grads, state, learning_rate, b1, b2, eps, weight_decay, decoupled, False)


def _over_leaves(params, grads, state, learning_rate, b1, b2, eps, weight_decay, decoupled, update):
    trees = {"params": grads if params is None else params, "state.mu": state.mu, "state.nu": state.nu}
    structure, rows = optimizer.columns("adam_step", grads, trees)
    lr, count = optimizer.rate(learning_rate, state.count), state.count + 1
    options = {"lr": lr, "step": count, "beta1": b1, "beta2": b2, "eps": eps, "weight_decay": weight_decay}
    options["decoupled"] = decoupled
    scalars = {g.dtype: fixed(kernels.scalars(**options, dtype=g.dtype)) for g, *_ in rows}
    new = [step(None if params is None else p, g, m, v, scalars[g.dtype], update) for g, p, m, v in rows]
    p, mu, nu = (structure.unflatten([leaf[k] for leaf in new]) for k in range(3))
    return p, AdamState(count, mu, nu)


def by_spec(p: jax.Array, g: jax.Array, m: jax.Array, v: jax.Array, *, lr: float = LR, beta1: float = BETA1,
            beta2: float = BETA2, step: int = 1, **options: Any) -> tuple[jax.Array, ...]:  # fmt: skip
    """adam_step of one array with the Spec's options."""
    state = AdamState(jnp.asarray(step - 1, jnp.int32), m, v)
    p, state = adam_step(p, g, state, learning_rate=lr, b1=beta1, b2=beta2, **options)
    return p, state.mu, state.nu
