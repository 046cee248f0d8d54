"""A network trained in jax, one step at a time; imports no torch."""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from gradlab.autodiff.frameworks.side_jax import SIDE
from gradlab.workloads.layers_jax import loss, optimizer, outputs
from gradlab.workloads.layouts import Arrays, flat, nested, to_jax, to_torch
from gradlab.workloads.network import Weights
from gradlab.workloads.spread_jax import AXIS, Spread, everywhere, gathered, over, own_rows, signal_of, taken, whole
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
    spread: Spread | None


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
        spread = over(world)
        self._config = _StepConfig(workload, layers, settings, precision, spread)
        self._signal, self._told = 0, 0
        host = nested(to_jax(weights))
        params = jax.tree.map(lambda w: self._placed(w, jax.ShapeDtypeStruct(w.shape, jnp.float32)), host)
        init = optimizer(layers, settings).init
        if spread is not None:
            init = jax.jit(init, out_shardings=spread.shardings(jax.eval_shape(init, params)))
        self._state: dict[str, Any] = {"params": params, "optimizer": init(params)}
        if precision == "fp16":
            start = {"scale": np.float32(_SCALE), "good": np.int32(0)}
            self._state["scaler"] = jax.tree.map(lambda n: self._placed(n, n), start)

    def step(self, x: np.ndarray, t: np.ndarray) -> float:
        """One step on this process's rows x, t of a batch: the mean loss of the whole batch before it."""
        spread = self._config.spread
        told = None if spread is None else spread.told(self._signal)
        self._state, said = _step(self._config, self._state, self._rows(x), self._rows(t), told)
        if told is None:
            return float(said)
        value, *counts = np.asarray(said)
        self._told = signal_of(counts)
        return float(value)

    def agreed(self, signal: int) -> int:
        """The signal that the processes end with, 0 for none; one that reached any of them is known a step later."""
        if self._config.spread is None or self._config.spread.processes == 1:
            return signal
        self._signal = signal
        return self._told

    def program(self, x: np.ndarray, t: np.ndarray) -> str:
        """The compiled step on batches of this shape as text: XLA's."""
        told = None if self._config.spread is None else self._config.spread.told(0)
        lowered = _step.lower(self._config, self._state, self._rows(x), self._rows(t), told)
        return lowered.compile().as_text() or ""

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The network's outputs for x, rows of this process's own."""
        spread = self._config.spread
        if spread is None:
            return SIDE.take(_predicted(self._config, self._state["params"], self._rows(x)))
        devices = spread.mesh.size // spread.processes
        full = x.take(range(-(-len(x) // devices) * devices), axis=0, mode="wrap")
        y = _predicted(self._config, self._state["params"], self._rows(full))
        return own_rows(y)[: len(x)].astype(np.float64)

    def gathered(self, rows: np.ndarray) -> np.ndarray:
        """The rows of all processes in their order; each has as many."""
        spread = self._config.spread
        return rows if spread is None or spread.processes == 1 else gathered(rows)

    def weights(self) -> Weights:
        """The weights in torch's layout."""
        return to_torch({name: taken(w) for name, w in flat(self._state["params"]).items()})

    def state(self) -> Arrays:
        """Everything that the next step depends on, by name, in this side's layout; all processes ask together."""
        return {name: taken(value) for name, value in self.live().items()}

    def live(self) -> Arrays:
        """The same as this framework's arrays, each where it lies."""
        return flat(self._state["params"]) | dict(self._rest())

    def restore(self, state: Arrays) -> None:
        """Continue from what `state` or `live` returned."""
        params = {name: self._placed(state[name], old) for name, old in flat(self._state["params"]).items()}
        rest = {key: self._state[key] for key in self._state if key != "params"}
        leaves = [self._placed(state[name], old) for name, old in self._rest()]
        self._state = {"params": nested(params), **jax.tree.unflatten(jax.tree.structure(rest), leaves)}

    def peak(self) -> int:
        """Peak bytes of device memory; 0 on a CPU, where it is not counted."""
        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)

    def quiet(self) -> AbstractContextManager[None]:
        """No limit: XLA uses the threads that it can fill."""
        return nullcontext()

    def _rest(self):
        rest = {key: self._state[key] for key in self._state if key != "params"}
        for path, leaf in jax.tree.leaves_with_path(rest):
            yield ".".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path), leaf

    def _placed(self, value: Any, like: Any) -> jax.Array:
        """An array of the state, of NumPy or of `live`, where steps expect it."""
        if self._config.spread is not None:
            return self._config.spread.put(value, like)
        # Not an alias: a step donates its state.
        return jax.device_put(np.asarray(value, like.dtype), may_alias=False)

    def _rows(self, rows: np.ndarray) -> jax.Array:
        """Inputs or targets on the devices; images from [M C H W] to [M H W C]."""
        if rows.ndim == 4:
            rows = np.ascontiguousarray(rows.transpose(0, 2, 3, 1))
        if self._config.spread is None:
            return SIDE.put(rows, "float32")
        return self._config.spread.rows(rows.astype(np.float32 if rows.dtype.kind == "f" else np.int32))


def _outputs(config: _StepConfig, params, x):
    dtype = _DTYPES.get(config.precision, jnp.float32)
    low = jax.tree.map(lambda p: p.astype(dtype), params)
    return outputs(config.layers, config.workload.network, low, x.astype(dtype)).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def _predicted(config: _StepConfig, params, x):
    if config.spread is None:
        return _outputs(config, params, x)
    specs = config.spread.specs(params)

    def of_rows(params, x):
        return _outputs(config, whole(params, specs), x)

    return jax.shard_map(of_rows, mesh=config.spread.mesh, in_specs=(specs, P(AXIS)), out_specs=P(AXIS))(params, x)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _step(config: _StepConfig, state, x, t, told):
    if config.spread is None:
        return _on_each(config, None, state, x, t, told)
    specs = config.spread.specs(state)
    return jax.shard_map(
        functools.partial(_on_each, config, specs),
        mesh=config.spread.mesh,
        in_specs=(specs, P(AXIS), P(AXIS), P(AXIS)),
        out_specs=(specs, P()),
    )(state, x, t, told)


def _on_each(config: _StepConfig, specs, state, x, t, told):
    """One device's part of a step, on its rows of the batch; all of it where `specs` is None."""
    scaler = state.get("scaler")
    scale = 1.0 if scaler is None else scaler["scale"]

    def scaled(params):
        full = params if specs is None else whole(params, specs["params"])
        value = loss(config.layers, config.workload.loss, _outputs(config, full, x), t)
        # A term of the mean over the whole batch: in fp16 gradients are of its range on any number of devices.
        value = value if config.spread is None else value / config.spread.mesh.size
        return scale * value, value

    (_, said), grads = jax.value_and_grad(scaled, has_aux=True)(state["params"])
    if specs is not None:
        said = jax.lax.psum(said if told is None else jnp.concatenate([said[None], told[0]]), AXIS)
    grads = jax.tree.map(lambda g: g / scale, grads) if scaler is not None else grads
    update = optimizer(config.layers, config.optimizer).update
    updates, optimizer_state = update(grads, state["optimizer"], state["params"])
    new = {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer_state}
    if scaler is None:
        return new, said
    finite = jnp.all(jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]))
    if config.spread is not None and config.spread.fsdp:
        finite = everywhere(finite)
    old = {key: state[key] for key in new}
    new = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
    good = jnp.where(finite, scaler["good"] + 1, 0)
    grown = jnp.where(good == _GOOD_STEPS, 2 * scale, scale)
    new["scaler"] = {
        "scale": jnp.where(finite, grown, scale / 2),
        "good": jnp.where(good == _GOOD_STEPS, 0, good),
    }
    return new, said
