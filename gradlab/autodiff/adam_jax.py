"""Adam for jax: the whole step fused, in place where its arrays are donated, and with a derivative."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradlab.autodiff.arguments.errors import dtype_name, refuse
from gradlab.autodiff.frameworks.ranges_jax import public
from gradlab.autodiff.optimizers import optimizer_jax as optimizer
from gradlab.autodiff.optimizers.norm_jax import clip_factor, want_norm
from gradlab.autodiff.optimizers.optimizer_jax import Rate
from gradlab.kernels import adam_pallas as kernels
from gradlab.kernels.adam import BETA1, BETA2, EPS, LR
from gradlab.kernels.common import rounding_pallas as rounding
from gradlab.kernels.runtime.mesh_pallas import compiled


class AdamState(NamedTuple):
    """Steps taken (int32), and trees like the parameters: two moments, the largest second moment, master weights.

    nu_max is None without amsgrad, master without master weights; a leaf of master is None where the parameter is not
    of half precision.
    """

    count: jax.Array  # type: ignore[assignment]  # optax's name for it hides tuple.count
    mu: Any
    nu: Any
    nu_max: Any = None
    master: Any = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _step_rule(p, g, m, v, x, lr, scalars, update):
    """(p', m', v', x') of one step, in new memory; no x' without x.

    With `update` the result is p' - p in place of p', and p may be None if there is no decay.
    """
    return tuple(kernels.adam(p, g, m, v, x, None, lr, scalars, update))


def _step_fwd(p, g, m, v, x, lr, scalars, update):
    return step(p, g, m, v, x, lr, scalars, update), (p, g, m, v, x, lr, scalars)


def _step_bwd(update, saved, cotangents):
    p, g, m, v, x, lr, scalars = saved
    cp, cm, cv, cx = (*cotangents, None)[:4]
    found = list(pullback(p, g, m, v, x, lr, cp, cm, cv, cx, scalars, update))
    dp = None if p is None else found.pop(0)
    dx = None if x is None else found[3]
    # Zeros, not None, so that `fixed` refuses the derivative by a scalar.
    return dp, *found[:3], dx, found[-1].astype(lr.dtype), jnp.zeros_like(scalars)


_step_rule.defvjp(_step_fwd, _step_bwd)
step = compiled(_step_rule, static_argnums=7)


@functools.partial(jax.custom_vjp, nondiff_argnums=(11,))
def _pullback_rule(p, g, m, v, x, lr, cp, cm, cv, cx, scalars, update):
    """(dp, dg, dm, dv, dx, dlr) for the cotangents of p', m', v', x'; without elements where there is no x or lr.

    In jax dp and dx are left out without p and x; dlr is always there, and dead code if unused.
    """
    return tuple(kernels.adam_pullback(p, g, m, v, x, lr, cp, cm, cv, cx, scalars, update))


def _pullback_fwd(*args):
    raise NotImplementedError("adam_step: its second derivative is not implemented, wanted order 1")


_pullback_rule.defvjp(_pullback_fwd, _pullback_fwd)
pullback = compiled(_pullback_rule, static_argnums=11)

fixed = optimizer.fixed("adam_step: no derivative for b1, b2, eps, eps_root or weight_decay")

# A step with rounding, a guard or a scale has no derivative.
plain_step = compiled(
    optimizer.without_derivative(
        lambda p, g, m, v, x, w, lr, scalars, key, guarded: tuple(
            kernels.adam(p, g, m, v, x, w, lr, scalars, False, guarded, key)
        ),
        "adam_step: no derivative with master_weights, state_dtype, grad_scale, found_inf or max_norm",
        (9,),
    ),
    static_argnums=9,
)


def adam_init(
    params: Any, *, amsgrad: bool = False, mu_dtype: Any = None, master_weights: bool = False, state_dtype: Any = None
) -> AdamState:
    """The state of `adam_step` before the first step: no steps, moments of zero.

    Args:
        params: a tree of arrays of the lab's floating dtypes.
        amsgrad: whether to keep the largest second moment, too.
        mu_dtype: dtype of the first moment, which is rounded to nearest; None for the parameter's.
        master_weights, state_dtype: as in `adam_step`.

    Raises:
        TypeError: a parameter that is not such an array, a mu_dtype that is not one of these dtypes.
    """
    if state_dtype is not None and mu_dtype is not None:
        refuse("adam_init", "mu_dtype", mu_dtype, "None beside a state_dtype")
    dtype = _state_dtype("adam_init", state_dtype)
    mu_dtype = optimizer.float_dtype("adam_init", "mu_dtype", mu_dtype)

    def zeros(own: Any = None) -> Any:
        return optimizer.zeros("adam", params, lambda p: own or _moments_of(p, dtype, master_weights))

    state = AdamState(jnp.zeros((), jnp.int32), zeros(mu_dtype), zeros())
    if amsgrad:
        state = state._replace(nu_max=zeros())
    if master_weights:
        state = state._replace(master=jax.tree.map(_master_of, params))
    return state


@public("adam")
def adam_step(params: Any, grads: Any, state: AdamState, *,
              learning_rate: Rate = LR, b1: float = BETA1, b2: float = BETA2, eps: float = EPS, eps_root: float = 0.0,
              weight_decay: float = 0.0, decoupled: bool = False, maximize: bool = False, corrected_max: bool = True,
              master_weights: bool = False, state_dtype: Any = None, seed: int | jax.Array = 0,
              grad_scale: jax.Array | None = None, found_inf: jax.Array | None = None,
              max_norm: float | jax.Array | None = None) -> tuple[Any, AdamState]:  # fmt: skip
    """One step: parameters and moments updated in one pass over each array; with amsgrad if the state has nu_max.

    Args:
        params, grads: trees of the same structure, shapes and dtypes.
        state: from `adam_init(params)`, or from the step before. Under a jit that donates params and state, the step
            is in place.
        learning_rate: a number, a scalar array, which has a derivative, or a schedule of the number of steps taken.
        b1, b2, eps, eps_root: as in `adam`.
        weight_decay: added to the gradient, times the parameter.
        decoupled: weight decay as in `adamw`.
        maximize: ascend the gradient.
        corrected_max: whether amsgrad takes its maximum after the bias correction, as optax does, or before, as torch.
        master_weights: half-precision parameters have float32 master weights in the state, which they round. A
            parameter
            that differs from its rounded master was changed outside of the optimizer: it becomes the master.
        state_dtype: dtype of the moments, float32 or bfloat16, the latter with stochastic rounding; None for that of
            the parameters, or of their master weights.
        seed: a number, or a jax key, for that rounding; the same seed gives the same bits.
        grad_scale: a scalar array, the factor that the gradients were multiplied by; they are divided by it.
        found_inf: a scalar array; if it is not 0, nothing changes and no step is counted.
        max_norm: gradients are clipped to this norm over the tree (without grad_scale), as in `clip_by_global_norm`,
            in the pass that reads them anyway.

    Returns:
        The new parameters and state; differentiable once with respect to params, grads, moments and the learning rate,
        unless one of the last six options is given. Where amsgrad's maximum is of equal numbers, each gets half of
        the derivative; the derivative of the square root at 0 is 0.

    Raises:
        ValueError: trees or shapes that differ, a state that was made for other options.
        TypeError: dtypes that differ or are not floating.
        NotImplementedError: a second derivative, or one with respect to another scalar option.
    """
    options = {
        "b1": b1,
        "b2": b2,
        "eps": eps,
        "eps_root": eps_root,
        "weight_decay": weight_decay,
        "decoupled": decoupled,
        "maximize": maximize,
        "corrected_max": corrected_max and state.nu_max is not None,
    }
    if max_norm is not None:
        scale = jnp.ones(()) if grad_scale is None else jnp.asarray(grad_scale).reshape(())
        want_norm("adam_step", max_norm)
        grad_scale = scale / clip_factor(grads, max_norm * scale)
    plain = not master_weights and state_dtype is None and grad_scale is None and found_inf is None
    dtype = _state_dtype("adam_step", state_dtype)
    mastered = bool(jax.tree.leaves(state.master))
    if mastered != (master_weights and any(map(_half, jax.tree.leaves(params)))):
        came = "given without master_weights" if mastered else "None with master_weights"
        refuse(
            "adam_step", "state.master", came, "the state of adam_init(params, master_weights=...) with the same value"
        )
    if plain:
        return over_leaves("adam_step", params, grads, state, learning_rate, options)
    structure, rows = _columns("adam_step", params, grads, state, dtype, master_weights)
    found = jnp.zeros(()) if found_inf is None else jnp.asarray(found_inf).reshape(())
    lr = optimizer.rate(learning_rate, state.count)
    count = optimizer.following(state.count)
    masters: list[Any] = [None] * len(rows)
    if mastered:
        masters, tree = jax.tree.flatten(state.master, is_leaf=lambda w: w is None)
        if tree != structure:
            refuse("adam_step", "the tree of state.master", tree, f"{structure} like grads")
    new, taken = [], {"grad_scale": grad_scale, "found": found}
    for number, ((g, p, m, v, *x), w) in enumerate(zip(rows, masters, strict=True)):
        one, scalars = _numbers("adam_step", lr, count, g.dtype, options | taken)
        key = None if dtype != jnp.bfloat16 else rounding.key_at(rounding.words(seed, number), count)
        row = plain_step(p, g, m, v, x[0] if x else None, w, one, scalars, key, found_inf is not None)
        row = optimizer.parted((p, m, v, *x, w), row)
        new.append([*row[:3], row[3] if x else None, row[-1] if w is not None else None])
    p, mu, nu, nu_max, master = (structure.unflatten([leaf[k] for leaf in new]) for k in range(5))
    counted = jnp.where(found != 0, state.count, count) if found_inf is not None else count
    after = AdamState(counted, mu, nu, None if state.nu_max is None else nu_max, master if mastered else state.master)
    return p, after


def over_leaves(
    op: str,
    params: Any,
    grads: Any,
    state: AdamState,
    learning_rate: Rate,
    options: dict[str, Any],
    update: bool = False,
    decayed: Any = None,
) -> tuple[Any, AdamState]:
    """The step of every leaf, without rounding, guard or scale; `update`: p' - p in place of p', params may be None.

    `decayed` lists whether each leaf has weight decay; None: all.
    """
    structure, rows = _columns(op, params, grads, state, None, False)
    lr, count = optimizer.rate(learning_rate, state.count), optimizer.following(state.count)
    numbers: dict[Any, Any] = {}
    new = []
    for (g, p, m, v, *x), decays in zip(rows, decayed or [True] * len(rows), strict=True):
        leaf_options = options if decays else options | {"weight_decay": 0.0}
        if (g.dtype, decays) not in numbers:
            one, scalars = _numbers(op, lr, count, g.dtype, leaf_options)
            numbers[g.dtype, decays] = one, fixed(scalars)
        row = step(None if params is None else p, g, m, v, x[0] if x else None, *numbers[g.dtype, decays], update)
        new.append(optimizer.parted((m if params is None else p, m, v, *x), row))
    trees = [structure.unflatten([leaf[k] for leaf in new]) for k in range(3 if state.nu_max is None else 4)]
    return trees[0], AdamState(count, *trees[1:])


def _numbers(op: str, lr: Any, count: jax.Array, dtype: Any, options: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
    """The learning rate, and the scalars of a step, in the dtype that sums of `dtype` are carried in."""
    renamed = {{"b1": "beta1", "b2": "beta2"}.get(name, name): value for name, value in options.items()}
    scalars = kernels.scalars(step=count, **renamed, dtype=dtype)
    return optimizer.number(op, "learning_rate", lr, scalars.dtype), scalars


def _columns(
    op: str, params: Any, grads: Any, state: AdamState, dtype: Any, mastered: bool
) -> tuple[Any, list[tuple[jax.Array, ...]]]:
    """The structure of grads, and (g, p, m, v) or (g, p, m, v, x) of each leaf, with dtypes as the options demand.

    The first moment may have a dtype of its own, unless it is rounded stochastically.
    """
    trees = {"params": grads if params is None else params, "state.mu": state.mu, "state.nu": state.nu}
    if state.nu_max is not None:
        trees["state.nu_max"] = state.nu_max
    structure, rows = optimizer.columns(op, grads, trees, tuple(trees)[1:])
    for g, _, *moments in rows:
        wanted = _moments_of(g, dtype, mastered)
        for name, moment in list(zip(tuple(trees)[1:], moments, strict=True))[dtype != jnp.bfloat16 :]:
            if moment.dtype != wanted:
                like = "like grads" if wanted == g.dtype else "for its master_weights and state_dtype: adam_init"
                refuse(op, f"dtype of {name}", dtype_name(moment), f"{jnp.dtype(wanted).name} {like}", TypeError)
    return structure, rows


def _state_dtype(op: str, dtype: Any) -> Any:
    """The dtype of the moments, or None."""
    if dtype is not None and jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16):
        refuse(op, "state_dtype", jnp.dtype(dtype).name, "float32, bfloat16 or None")
    return None if dtype is None else jnp.dtype(dtype)


def _moments_of(p: Any, dtype: Any, mastered: bool) -> Any:
    """The dtype of the moments of a parameter."""
    return dtype or (jnp.dtype("float32") if mastered and _half(p) else p.dtype)


def _master_of(p: Any) -> jax.Array | None:
    return jnp.asarray(p, "float32") if _half(jnp.asarray(p)) else None


def _half(p: Any) -> bool:
    return getattr(p, "dtype", None) in (jnp.float16, jnp.bfloat16)


def by_spec(
    p: jax.Array,
    g: jax.Array,
    m: jax.Array,
    v: jax.Array,
    lr: jax.Array,
    x: jax.Array | None = None,
    *,
    beta1: float = BETA1,
    beta2: float = BETA2,
    step: int = 1,
    **options: Any,
) -> tuple[jax.Array, ...]:
    """adam_step of one array with the Spec's options; amsgrad is torch's."""
    state = AdamState(jnp.asarray(step - 1, jnp.int32), m, v, x)
    p, state = adam_step(p, g, state, learning_rate=lr, b1=beta1, b2=beta2, corrected_max=False, **options)
    return (p, state.mu, state.nu) if x is None else (p, state.mu, state.nu, state.nu_max)
