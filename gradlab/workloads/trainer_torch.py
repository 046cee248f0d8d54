"""A network trained in torch, one step at a time; imports no jax."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from gradlab.autodiff.frameworks.side_torch import SIDE
from gradlab.workloads import spread_torch as spread
from gradlab.workloads.layers_torch import Net, loss, optimizer, outputs
from gradlab.workloads.layouts import Arrays
from gradlab.workloads.network import Weights
from gradlab.workloads.workload import Layers, Optimizer, Workload
from gradlab.workloads.world import World

# Below this many parameters one thread is faster than two.
_SMALL = 100_000
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


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
        self._workload, self._layers, self._dtype = workload, layers, _DTYPES.get(precision)
        self._params = {name: SIDE.put(w, "float32").requires_grad_() for name, w in weights.items()}
        self._stop = spread.Flags()
        # A process that stands alone calls its layers itself: a wrapper would have nothing to add up.
        self._net = None
        if spread.needed(world):
            net = Net(layers, workload.network, self._params)
            self._net = spread.wrapped(net, world)
            self._params = dict(net.named_parameters())
        self._optimizer = optimizer(layers, settings, self._params)
        self._scaler = torch.amp.GradScaler(SIDE.device(), enabled=precision == "fp16")
        if SIDE.device() == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def step(self, x: np.ndarray, t: np.ndarray) -> float:
        """One step on this process's rows x, t of a batch: the mean loss of the whole batch before it."""
        self._optimizer.zero_grad()
        with self._cast():
            value = loss(self._layers, self._workload.loss, self._outputs(x), SIDE.put(t, "float32"))
        self._scaler.scale(value).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return value.item() if self._net is None else self._stop.mean(value)

    def agreed(self, signal: int) -> int:
        """The signal that the processes end with, 0 for none; one that reached any of them is known a step later."""
        return signal if self._net is None else self._stop.agreed(signal)

    def program(self, x: np.ndarray, t: np.ndarray) -> str:
        """The compiled step as text: empty, as torch runs it op by op."""
        return ""

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The network's outputs for x."""
        with torch.no_grad(), self._cast():
            y = self._outputs(x)
        return SIDE.take(y)

    def gathered(self, rows: np.ndarray) -> np.ndarray:
        """The rows of all processes in their order; each has as many."""
        return rows if self._net is None else spread.gathered(rows)

    def weights(self) -> Weights:
        """The weights in torch's layout."""
        return {name: _taken(p) for name, p in self._params.items()}

    def state(self) -> Arrays:
        """Everything that the next step depends on, by name, in this side's layout; all processes ask together."""
        return {name: value if isinstance(value, np.ndarray) else _taken(value) for name, value in self.live().items()}

    def live(self) -> Arrays:
        """The same as this framework's arrays, each where it lies: of one that is sharded, this process's part."""
        found: Arrays = dict(self._params)
        for name, p in self._params.items():
            for key, value in self._optimizer.state[p].items():
                if value is not None:
                    found[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
        for key, value in self._scaler.state_dict().items():
            found[f"scaler.{key}"] = np.asarray(value)
        return found

    def restore(self, state: Arrays) -> None:
        """Continue from what `state` or `live` returned."""
        with torch.no_grad():
            for name, p in self._params.items():
                p.copy_(spread.like(p, state[name]))
        states: dict[int, dict[str, Any]] = {}
        for i, (name, p) in enumerate(self._params.items()):
            keys = [key for key in state if key.startswith("optimizer.") and key.endswith(f".{name}")]
            states[i] = {key.split(".")[1]: spread.like(p, state[key]) for key in keys}
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": {i: s for i, s in states.items() if s}, "param_groups": groups})
        scale = {key.removeprefix("scaler."): value.item() for key, value in state.items() if key.startswith("scaler.")}
        if scale:
            self._scaler.load_state_dict(scale)

    def peak(self) -> int:
        """Peak bytes of device memory; 0 on a CPU, where it is not counted."""
        return torch.cuda.max_memory_allocated() if SIDE.device() == "cuda" else 0

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """One thread for a small network: on a busy CPU, waiting for a second one can take forty times as long."""
        threads = torch.get_num_threads()
        if sum(p.numel() for p in self._params.values()) < _SMALL:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def _outputs(self, x: np.ndarray) -> torch.Tensor:
        given = SIDE.put(x, "float32")
        if self._net is None:
            return outputs(self._layers, self._workload.network, self._params, given)
        return self._net(given)

    def _cast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._dtype is None else torch.autocast(SIDE.device(), self._dtype)


def _taken(t: torch.Tensor) -> np.ndarray:
    return spread.full(t).detach().cpu().numpy().copy()
