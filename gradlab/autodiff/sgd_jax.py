"""SGD for jax: a gradient transformation as optax has them, and the whole step fused, with derivatives of any order."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradlab.autodiff.arguments.errors import refuse
from gradlab.autodiff.frameworks.ranges_jax import public
from gradlab.autodiff.optimizers import optimizer_jax as optimizer
from gradlab.autodiff.optimizers.optimizer_jax import GradientTransformation, Rate
from gradlab.kernels import sgd_pallas as kernels
from gradlab.kernels.runtime.mesh_pallas import compiled
from gradlab.kernels.sgd import LR


class SGDState(NamedTuple):
    """Steps taken (int32), and the momentum buffers, a tree like the parameters; None without momentum."""

    count: jax.Array  # type: ignore[assignment]  # optax's name for it hides tuple.count
    trace: Any


@jax.custom_vjp
def _step_rule(p, g, b, scalars):
    """(p', b') of one step, in new memory.

    Without momentum b is None and there is no b'; where p is None, p' - p stands in place of p'.
    """
    return tuple(kernels.sgd(p, g, b, scalars))


def _step_fwd(p, g, b, scalars):
    # An array without elements marks that there was a p.
    return step(p, g, b, scalars), (None if p is None else jnp.empty(0), scalars)


def _step_bwd(saved, cotangents):
    p, scalars = saved
    gradients = list(pullback(cotangents[0], *(cotangents[1:] or (None,)), scalars, p is not None))
    dp = None if p is None else gradients.pop(0)
    # Zeros, not None, so that `fixed` refuses the derivative by a scalar.
    return dp, gradients[0], *(gradients[1:] or (None,)), jnp.zeros_like(scalars)


_step_rule.defvjp(_step_fwd, _step_bwd)
step = compiled(_step_rule)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _pullback_rule(cp, cb, scalars, with_p):
    """(dp, dg, db) for the cotangents of p', b'. Its own pullback is the step.

    Without momentum there is neither b' nor db; without `with_p` no dp.
    """
    return tuple(kernels.sgd_pullback(cp, cb, scalars, with_p))


def _pullback_fwd(cp, cb, scalars, with_p):
    return pullback(cp, cb, scalars, with_p), scalars


def _pullback_bwd(with_p, scalars, cotangents):
    given = list(cotangents)
    up = given.pop(0) if with_p else None
    cp, *cb = step(up, given[0], *(given[1:] or (None,)), scalars)
    return cp, *(cb or (None,)), jnp.zeros_like(scalars)


_pullback_rule.defvjp(_pullback_fwd, _pullback_bwd)
pullback = compiled(_pullback_rule, static_argnums=3)

fixed = optimizer.fixed("sgd_step: no derivative for learning_rate, momentum, dampening or weight_decay")


def sgd(
    learning_rate: Rate,
    momentum: float | jax.Array | None = None,
    nesterov: bool = False,
    accumulator_dtype: None = None,
) -> GradientTransformation:
    """Stochastic gradient descent as a gradient transformation; a hand-written `optax.sgd`.

        update = -lr b',    b' = momentum b + g;    with Nesterov's momentum -lr (g + momentum b')

    gradlab/kernels/sgd.py has all formulas.

    Args:
        learning_rate: a number, an array, or a schedule of the steps taken; a run-time value.
        momentum: a number or an array; None keeps no buffer.
        nesterov: whether to use Nesterov's momentum; no effect without momentum.
        accumulator_dtype: None: the buffer has its parameter's dtype.

    Returns:
        `init` and `update`, for optax.chain, optax.apply_updates and jax.jit.

    Raises:
        ValueError: an accumulator_dtype.
    """
    if accumulator_dtype is not None:
        refuse("sgd", "accumulator_dtype", accumulator_dtype, "None, the dtype of the parameters")

    def init(params: Any) -> SGDState:
        zeros = optimizer.zeros("sgd", params)
        return SGDState(jnp.zeros((), jnp.int32), None if momentum is None else zeros)

    def update(grads: Any, state: SGDState, params: Any = None) -> tuple[Any, SGDState]:
        options = {"momentum": momentum, "nesterov": nesterov}
        # The buffer starts at zero: without dampening the first step is like every other.
        return _over_leaves("sgd", None, grads, state, learning_rate, options)

    return GradientTransformation(init, update)


@public("sgd")
def sgd_step(
    params: Any,
    grads: Any,
    state: SGDState,
    *,
    learning_rate: Rate,
    momentum: float | jax.Array | None = None,
    dampening: float | jax.Array = 0.0,
    weight_decay: float | jax.Array = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> tuple[Any, SGDState]:
    """One step: parameters and momentum buffers updated in one pass over each array.

    Args:
        params, grads: trees of the same structure, shapes and dtypes.
        state: from `sgd(learning_rate, momentum).init(params)`, or from the step before. Under a jit that donates
            params and state, the step is in place.
        learning_rate, momentum: as in `sgd`.
        dampening: the share of the gradient that is left out of the buffer, after the first step.
        weight_decay: added to the gradient, times the parameter.
        nesterov: as in `sgd`; wants a momentum and no dampening.
        maximize: ascend the gradient.

    Returns:
        The new parameters and state; derivatives of every order with respect to params, grads and buffers are exact.

    Raises:
        ValueError: trees or shapes that differ, a momentum without a buffer, nesterov without momentum.
        TypeError: dtypes that differ or are not floating.
        NotImplementedError: a derivative with respect to a scalar option.
    """
    dampened = isinstance(dampening, jax.Array) or dampening != 0
    if nesterov and (momentum is None or dampened):
        came = f"True with momentum {momentum} and dampening {dampening}"
        refuse("sgd_step", "nesterov", came, "a momentum and zero dampening with it")
    options = {
        "momentum": momentum,
        "dampening": dampening,
        "weight_decay": weight_decay,
        "nesterov": nesterov,
        "maximize": maximize,
        "first": state.count == 0,
    }
    return _over_leaves("sgd_step", params, grads, state, learning_rate, options)


def _over_leaves(op, params, grads, state, learning_rate, options):
    if options["momentum"] is not None and state.trace is None:
        refuse(op, "state.trace", "None", "buffers for the momentum: sgd(learning_rate, momentum).init(params)")
    buffered = options["momentum"] is not None
    trees = {"params": grads if params is None else params, "state.trace": state.trace if buffered else grads}
    structure, rows = optimizer.columns(op, grads, trees)
    options = {"lr": optimizer.rate(learning_rate, state.count), **options}
    scalars = {g.dtype: fixed(kernels.scalars(**options, dtype=g.dtype)) for g, *_ in rows}
    new = []
    for g, p, b in rows:
        row = step(None if params is None else p, g, b if buffered else None, scalars[g.dtype])
        new.append(optimizer.parted((b if params is None else p, b), row))
    moved, *trace = (structure.unflatten([leaf[k] for leaf in new]) for k in range(2 if buffered else 1))
    return moved, SGDState(optimizer.following(state.count), trace[0] if buffered else state.trace)


def by_spec(
    p: jax.Array,
    g: jax.Array,
    b: jax.Array,
    *,
    lr: float = LR,
    momentum: float = 0.0,
    first: bool = False,
    **options: Any,
) -> tuple[jax.Array, ...]:
    """sgd_step of one array with the Spec's options."""
    state = SGDState(jnp.asarray(0 if first else 1, jnp.int32), b)
    p, state = sgd_step(p, g, state, learning_rate=lr, momentum=momentum or None, **options)
    return p, state.trace
