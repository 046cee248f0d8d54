"""A network trained in torch, one step at a time; imports no jax."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from gradlab.autodiff.frameworks.side_torch import SIDE
from gradlab.workloads.layers_torch import loss, optimizer, outputs
from gradlab.workloads.layouts import Arrays
from gradlab.workloads.network import Weights
from gradlab.workloads.workload import Layers, Optimizer, Workload

# Below this many parameters one thread is faster than two.
_SMALL = 100_000
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """Weights, optimizer and, in fp16, the scale of the loss; weights are float32 whatever the precision."""

    def __init__(
        self, workload: Workload, layers: Layers, settings: Optimizer, precision: str, weights: Weights
    ) -> None:
        self._workload, self._layers, self._dtype = workload, layers, _DTYPES.get(precision)
        self._params = {name: SIDE.put(w, "float32").requires_grad_() for name, w in weights.items()}
        self._optimizer = optimizer(layers, settings, self._params)
        self._scaler = torch.amp.GradScaler(SIDE.device(), enabled=precision == "fp16")
        if SIDE.device() == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def step(self, x: np.ndarray, t: np.ndarray) -> float:
        """One step on the batch x, t: the mean loss before it."""
        self._optimizer.zero_grad()
        with self._cast():
            y = outputs(self._layers, self._workload.network, self._params, SIDE.put(x, "float32"))
            value = loss(self._layers, self._workload.loss, y, SIDE.put(t, "float32"))
        self._scaler.scale(value).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return value.item()

    def program(self, x: np.ndarray, t: np.ndarray) -> str:
        """The compiled step as text: empty, as torch runs it op by op."""
        return ""

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The network's outputs for x."""
        with torch.no_grad(), self._cast():
            y = outputs(self._layers, self._workload.network, self._params, SIDE.put(x, "float32"))
        return SIDE.take(y)

    def weights(self) -> Weights:
        """The weights in torch's layout."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self._params.items()}

    def state(self) -> Arrays:
        """Everything that the next step depends on, by name, in this side's layout."""
        found = dict(self.weights())
        for name, p in self._params.items():
            for key, value in self._optimizer.state[p].items():
                if value is not None:
                    found[f"optimizer.{key}.{name}"] = torch.as_tensor(value).detach().cpu().numpy().copy()
        for key, value in self._scaler.state_dict().items():
            found[f"scaler.{key}"] = np.asarray(value)
        return found

    def restore(self, state: Arrays) -> None:
        """Continue from what `state` returned."""
        with torch.no_grad():
            for name, p in self._params.items():
                p.copy_(torch.from_numpy(state[name]))
        states: dict[int, dict[str, Any]] = {}
        for i, name in enumerate(self._params):
            keys = [key for key in state if key.startswith("optimizer.") and key.endswith(f".{name}")]
            states[i] = {key.split(".")[1]: torch.from_numpy(state[key].copy()) for key in keys}
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

    def _cast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._dtype is None else torch.autocast(SIDE.device(), self._dtype)
