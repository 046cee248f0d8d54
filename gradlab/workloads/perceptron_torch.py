"""The perceptron in torch, by gradlab's layers or by torch's own; imports no jax."""

from collections.abc import Generator, Iterable

import numpy as np
import torch
import torch.nn.functional as F

from gradlab import torch as hand
from gradlab.autodiff.side_torch import SIDE
from gradlab.workloads.perceptron import LR, Batch, Layers, Weights

Params = list[torch.Tensor]


def put(weights: Weights) -> Params:
    """The weights on the device, as this framework lays them out."""
    w1, b1, w2, b2 = (SIDE.put(w, "float32") for w in weights)
    return [w1.t().contiguous(), b1, w2.t().contiguous(), b2]


def take(params: Params) -> Weights:
    """The weights back as NumPy."""
    w1, b1, w2, b2 = (SIDE.take(p).astype(np.float32) for p in params)
    return Weights(w1.T, b1, w2.T, b2)


def logits(layers: Layers, params: Params, x: torch.Tensor) -> torch.Tensor:
    """logits[M V] = relu(x[M K] w1[K N] + b1[N]) w2[N V] + b2[V]."""
    w1, b1, w2, b2 = params
    if layers == "hand":
        return hand.linear(hand.linear(x, w1, b1, activation="relu"), w2, b2)
    return F.linear(F.relu(F.linear(x, w1, b1)), w2, b2)


def loss(layers: Layers, params: Params, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of the logits with the classes t[M]."""
    if layers == "hand":
        return hand.cross_entropy(logits(layers, params, x), t)
    return F.cross_entropy(logits(layers, params, x), t)


def train(layers: Layers, start: Weights, batches: Iterable[Batch]) -> Generator[float, None, Weights]:
    """Adam from `start`: yields the loss of each batch before its step, returns the trained weights."""
    params = [p.requires_grad_() for p in put(start)]
    adam = hand.Adam(params, lr=LR) if layers == "hand" else torch.optim.Adam(params, lr=LR)
    # Matrices this small lose more by waiting for a second thread than it gives: forty times on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for x, t in batches:
            adam.zero_grad()
            value = loss(layers, params, SIDE.put(x, "float32"), SIDE.put(t, "float32"))
            value.backward()
            adam.step()
            yield value.item()
    finally:
        torch.set_num_threads(threads)
    return take(params)


def predict(layers: Layers, weights: Weights, x: np.ndarray) -> np.ndarray:
    """The class of every row of x[M K]."""
    with torch.no_grad():
        return SIDE.take(logits(layers, put(weights), SIDE.put(x, "float32")).argmax(1))
