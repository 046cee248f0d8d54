"""Adam, AdamW and AMSGrad for jax as gradient transformations: optax's, hand-written."""

from collections.abc import Callable
from typing import Any

import jax

from gradlab.autodiff.adam_jax import AdamState, adam_init, over_leaves
from gradlab.autodiff.arguments.errors import refuse
from gradlab.autodiff.optimizers import optimizer_jax as optimizer
from gradlab.autodiff.optimizers.optimizer_jax import GradientTransformation, Rate
from gradlab.kernels.adam import BETA1, BETA2, EPS, LR


def adam(
    learning_rate: Rate = LR,
    b1: float | jax.Array = BETA1,
    b2: float | jax.Array = BETA2,
    eps: float | jax.Array = EPS,
    eps_root: float | jax.Array = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam as a gradient transformation; a hand-written `optax.adam`.

    update = -lr / (1 - b1^s) m' / (sqrt(v' / (1 - b2^s) + eps_root) + eps) (gradlab/kernels/adam.py has all formulas).

    Args:
        learning_rate: a number, an array, or a schedule of the steps taken; a run-time value.
        b1, b2, eps, eps_root: as optax takes them, run-time values too.
        mu_dtype: dtype of the first moment, None for the parameter's; the update uses the moment before rounding.
        nesterov: refused unless false.

    Returns:
        `init` and `update`, for optax.chain, optax.apply_updates and jax.jit.

    Raises:
        ValueError: nesterov.
        TypeError: a mu_dtype that is not of the lab's floating dtypes.
    """
    _refuse_nesterov("adam", nesterov)
    return _transformation("adam", learning_rate, _options(b1, b2, eps, eps_root), mu_dtype)


def adamw(
    learning_rate: Rate = LR,
    b1: float | jax.Array = BETA1,
    b2: float | jax.Array = BETA2,
    eps: float | jax.Array = EPS,
    eps_root: float | jax.Array = 0.0,
    mu_dtype: Any = None,
    weight_decay: Rate = 1e-4,
    mask: Any | Callable[[Any], Any] | None = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam with decoupled weight decay as a gradient transformation; a hand-written `optax.adamw`.

    update = -lr weight_decay p - the step of `adam`.

    Args:
        learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov: as in `adam`.
        weight_decay: p' loses lr weight_decay p; may be a schedule of the number of steps taken.
        mask: which parameters decay: a tree of booleans, a prefix of the parameters' tree, or a function from the
            gradients to one; None: all.

    Returns:
        `init` and `update`, which needs the parameters: without them it raises a ValueError.
    """
    _refuse_nesterov("adamw", nesterov)
    options = _options(b1, b2, eps, eps_root) | {"weight_decay": weight_decay, "decoupled": True}
    return _transformation("adamw", learning_rate, options, mu_dtype, mask)


def amsgrad(
    learning_rate: Rate = LR,
    b1: float | jax.Array = BETA1,
    b2: float | jax.Array = BETA2,
    eps: float | jax.Array = EPS,
    eps_root: float | jax.Array = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> GradientTransformation:
    """AMSGrad as a gradient transformation; a hand-written `optax.amsgrad`.

    x' = max(x, v' / (1 - b2^s)), and update = -lr / (1 - b1^s) m' / (sqrt(x' + eps_root) + eps).

    Args:
        learning_rate, b1, b2, eps, eps_root, mu_dtype: as in `adam`.
        bias_correction_mu, bias_correction_nu: whether m' and v' are divided by 1 - b^s.

    Returns:
        `init` and `update`, as those of `adam`; the state has nu_max.
    """
    options = _options(b1, b2, eps, eps_root)
    options |= {"correct_mu": bias_correction_mu, "correct_nu": bias_correction_nu, "corrected_max": True}
    return _transformation("amsgrad", learning_rate, options, mu_dtype)


def _options(b1: Any, b2: Any, eps: Any, eps_root: Any) -> dict[str, Any]:
    return {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root, "weight_decay": 0.0}


def _refuse_nesterov(op: str, nesterov: bool) -> None:
    if nesterov:
        refuse(op, "nesterov", nesterov, "False")


def _transformation(
    op: str, learning_rate: Rate, options: dict[str, Any], mu_dtype: Any, mask: Any = None
) -> GradientTransformation:
    decays = "decoupled" in options
    mu_dtype = optimizer.float_dtype(op, "mu_dtype", mu_dtype)

    def init(params: Any) -> AdamState:
        """The state before the first step: no steps, moments of zero.

        Raises:
            TypeError: a parameter that is not an array of the lab's floating dtypes.
        """
        return adam_init(params, amsgrad=op == "amsgrad", mu_dtype=mu_dtype)

    def update(grads: Any, state: AdamState, params: Any = None) -> tuple[Any, AdamState]:
        if decays and params is None:
            refuse(op, "params", "None", "the parameters: update(grads, state, params)")
        decay = optimizer.rate(options["weight_decay"], state.count)
        return over_leaves(
            op,
            params if decays else None,
            grads,
            state,
            learning_rate,
            options | {"weight_decay": decay},
            update=True,
            decayed=_decayed(mask, grads),
        )

    return GradientTransformation(init, update)


def _decayed(mask: Any, grads: Any) -> list[bool] | None:
    """For each leaf of the gradients the value of the mask at it or at a tree around it."""
    if mask is None:
        return None
    given = mask(grads) if callable(mask) else mask
    try:
        spread = jax.tree.map(lambda here, part: jax.tree.map(lambda _: bool(here), part), given, grads)
    except ValueError:
        tree = jax.tree.structure(given)
        refuse("adamw", "the tree of mask", tree, f"{jax.tree.structure(grads)} like grads, or its beginning")
    return jax.tree.leaves(spread)
