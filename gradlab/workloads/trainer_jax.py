"""A network trained in jax, one step at a time; imports no torch."""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradlab.autodiff.frameworks.side_jax import SIDE
from gradlab.workloads.layers_jax import loss, optimizer, outputs
from gradlab.workloads.layouts import Arrays, flat, nested, to_jax, to_torch
from gradlab.workloads.network import Weights
from gradlab.workloads.workload import Layers, Optimizer, Workload
from gradlab.workloads.world import World

_DTYPES = {"bf16": jnp.bfloat16, "fp16": jnp.float16}
# The loss scale in fp16, as in torch.amp.GradScaler: halved at an overflow, doubled after _GOOD_STEPS good steps.
_SCALE, _GOOD_STEPS = 65536.0, 2000


class _StepConfig(NamedTuple):
    """The static arguments of a step's program: runs that share them share the compiled program."""

    workload: Workload
    layers: Layers
    optimizer: Optimizer
    precision: str


class Trainer:
    """Weights, optimizer and, in fp16, the scale of the loss; weights are float32 whatever the precision."""

    def __init__(
        self,
        workload: Workload,
        layers: Layers,
        settings: Optimizer,
        precision: str,
        weights: Weights,
        world: World = World(),  # noqa: B008 - a tuple
    ) -> None:
        if world.size > 1:
            raise ValueError(f"train: world is {world}, wanted one process on jax")
        self._config = _StepConfig(workload, layers, settings, precision)
        params = nested({name: SIDE.put(w, "float32") for name, w in to_jax(weights).items()})
        self._state: dict[str, Any] = {"params": params, "optimizer": optimizer(layers, settings).init(params)}
        if precision == "fp16":
            self._state["scaler"] = {"scale": jnp.float32(_SCALE), "good": jnp.int32(0)}

    def step(self, x: np.ndarray, t: np.ndarray) -> float:
        """One step on the batch x, t: the mean loss before it."""
        self._state, value = _step(self._config, self._state, _put(x), SIDE.put(t, "float32"))
        return float(value)

    def agreed(self, signal: int) -> int:
        """The signal that the processes end with, 0 for none."""
        return signal

    def program(self, x: np.ndarray, t: np.ndarray) -> str:
        """The compiled step on batches of this shape as text: XLA's."""
        return _step.lower(self._config, self._state, _put(x), SIDE.put(t, "float32")).compile().as_text() or ""

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The network's outputs for x."""
        return SIDE.take(_outputs(self._config, self._state["params"], _put(x)))

    def gathered(self, rows: np.ndarray) -> np.ndarray:
        """The rows of all processes in their order; each has as many."""
        return rows

    def weights(self) -> Weights:
        """The weights in torch's layout."""
        return to_torch({name: np.array(w) for name, w in flat(self._state["params"]).items()})

    def state(self) -> Arrays:
        """Everything that the next step depends on, by name, in this side's layout."""
        found = {name: np.array(w) for name, w in flat(self._state["params"]).items()}
        return found | {name: np.array(value) for name, value in self._rest()}

    def live(self) -> Arrays:
        """The same as this framework's arrays, each where it lies."""
        return flat(self._state["params"]) | dict(self._rest())

    def restore(self, state: Arrays) -> None:
        """Continue from what `state` or `live` returned."""
        params = nested({name: jnp.asarray(state[name]) for name in flat(self._state["params"])})
        rest = {key: self._state[key] for key in self._state if key != "params"}
        leaves = [jnp.asarray(state[name], old.dtype) for name, old in self._rest()]
        self._state = {"params": params, **jax.tree.unflatten(jax.tree.structure(rest), leaves)}

    def peak(self) -> int:
        """Peak bytes of device memory; 0 on a CPU, where it is not counted."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)

    def quiet(self) -> AbstractContextManager[None]:
        """No limit: XLA uses the threads that it can fill."""
        return nullcontext()

    def _rest(self):
        rest = {key: self._state[key] for key in self._state if key != "params"}
        for path, leaf in jax.tree.leaves_with_path(rest):
            yield ".".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path), leaf


@functools.partial(jax.jit, static_argnums=0)
def _outputs(config: _StepConfig, params, x):
    dtype = _DTYPES.get(config.precision, jnp.float32)
    low = jax.tree.map(lambda p: p.astype(dtype), params)
    return outputs(config.layers, config.workload.network, low, x.astype(dtype)).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _step(config: _StepConfig, state, x, t):
    scaler = state.get("scaler")
    scale = 1.0 if scaler is None else scaler["scale"]

    def scaled(params):
        value = loss(config.layers, config.workload.loss, _outputs(config, params, x), t)
        return scale * value, value

    (_, value), grads = jax.value_and_grad(scaled, has_aux=True)(state["params"])
    grads = jax.tree.map(lambda g: g / scale, grads) if scaler is not None else grads
    update = optimizer(config.layers, config.optimizer).update
    updates, optimizer_state = update(grads, state["optimizer"], state["params"])
    new = {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer_state}
    if scaler is None:
        return new, value
    finite = jnp.all(jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]))
    old = {key: state[key] for key in new}
    new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    good = jnp.where(finite, scaler["good"] + 1, 0)
    grown = jnp.where(good == _GOOD_STEPS, 2 * scale, scale)
    new["scaler"] = {
        "scale": jnp.where(finite, grown, scale / 2),
        "good": jnp.where(good == _GOOD_STEPS, 0, good),
    }
    return new, value


def _put(x: np.ndarray) -> jax.Array:
    """Inputs on the device; images from [M C H W] to [M H W C]."""
    return SIDE.put(np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == 4 else x, "float32")
