"""The perceptron in jax, by gradlab's layers or by jax's and optax's own; imports no torch."""

from collections.abc import Generator, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradlab import jax as hand
from gradlab.autodiff.side_jax import SIDE
from gradlab.workloads.perceptron import LR, Batch, Layers, Weights

Params = list[jax.Array]


def put(weights: Weights) -> Params:
    """The weights on the device, as this framework lays them out."""
    return [SIDE.put(w, "float32") for w in weights]


def take(params: Params) -> Weights:
    """The weights back as NumPy."""
    return Weights(*(SIDE.take(p).astype(np.float32) for p in params))


def logits(layers: Layers, params: Params, x: jax.Array) -> jax.Array:
    """logits[M V] = relu(x[M K] w1[K N] + b1[N]) w2[N V] + b2[V]."""
    w1, b1, w2, b2 = params
    if layers == "hand":
        return hand.linear(hand.linear(x, w1, b1, activation="relu"), w2, b2)
    # On a GPU the default precision of a float32 dot is TF32.
    h = jax.nn.relu(jnp.dot(x, w1, precision=jax.lax.Precision.HIGHEST) + b1)
    return jnp.dot(h, w2, precision=jax.lax.Precision.HIGHEST) + b2


def loss(layers: Layers, params: Params, x: jax.Array, t: jax.Array) -> jax.Array:
    """The mean cross-entropy of the logits with the classes t[M]."""
    if layers == "hand":
        return hand.cross_entropy(logits(layers, params, x), t)
    return optax.softmax_cross_entropy_with_integer_labels(logits(layers, params, x), t).mean()


def train(layers: Layers, start: Weights, batches: Iterable[Batch]) -> Generator[float, None, Weights]:
    """Adam from `start`: yields the loss of each batch before its step, returns the trained weights."""
    params = put(start)
    adam = hand.adam(LR) if layers == "hand" else optax.adam(LR)
    state = adam.init(params)

    @jax.jit
    def step(params, state, x, t):
        value, grads = jax.value_and_grad(lambda p: loss(layers, p, x, t))(params)
        updates, state = adam.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    for x, t in batches:
        params, state, value = step(params, state, SIDE.put(x, "float32"), SIDE.put(t, "float32"))
        yield float(value)
    return take(params)


def predict(layers: Layers, weights: Weights, x: np.ndarray) -> np.ndarray:
    """The class of every row of x[M K]."""
    return SIDE.take(jax.jit(logits, static_argnums=0)(layers, put(weights), SIDE.put(x, "float32")).argmax(1))
