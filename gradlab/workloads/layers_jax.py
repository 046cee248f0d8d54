"""A network's layers in jax, by gradlab or by jax, lax and optax themselves; images lie channels last."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gradlab import jax as gradlab_jax
from gradlab.workloads.network import Activation, Conv, Flatten, Network, Pool
from gradlab.workloads.workload import Layers, Optimizer

Params = dict[str, dict[str, jax.Array]]


def outputs(layers: Layers, network: Network, params: Params, x: jax.Array) -> jax.Array:
    """The network's outputs for x[M ...]."""
    for name, layer, *_ in network.placed():
        if isinstance(layer, Flatten):
            # Channels first, as torch flattens: the weights behind it are torch's, transposed.
            x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        elif isinstance(layer, Pool):
            window = (layer.window, layer.window)
            if layers == "gradlab":
                x = gradlab_jax.max_pool2d(x, window)
            else:
                steps = (1, *window, 1)
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, steps, steps, "VALID")
        else:
            kernel, bias = params[name]["kernel"], params[name]["bias"]
            fused: dict[str, Any] = {}
            if layers == "gradlab" and layer.activation == "relu":
                fused = {"activation": "relu"}
            if isinstance(layer, Conv):
                x = _conv(layers, x, kernel, bias, layer.padding, fused)
            elif layers == "gradlab":
                x = gradlab_jax.linear(x, kernel, bias, **fused)
            else:
                x = jnp.dot(x, kernel, precision=_precision(x)) + bias
            x = x if fused else activate(layers, layer.activation, x)
    return x


def _conv(layers, x, kernel, bias, padding, fused):
    if layers == "gradlab":
        return gradlab_jax.conv2d(x, kernel, bias, padding=padding, **fused)
    around = [(padding, padding)] * 2
    y = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), around, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=_precision(x)
    )
    return y + bias


def _precision(x):
    # By default a float32 product is TF32 on a GPU; half precision has no such choice.
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def activate(layers: Layers, activation: Activation, x: jax.Array) -> jax.Array:
    """The activation, or x itself where there is none."""
    module: Any = gradlab_jax if layers == "gradlab" else jax.nn
    return x if activation is None else getattr(module, activation)(x)


def loss(layers: Layers, name: str, y: jax.Array, t: jax.Array) -> jax.Array:
    """The mean loss of outputs y and targets t."""
    if layers == "gradlab":
        return getattr(gradlab_jax, name)(y, t)
    if name == "cross_entropy":
        return optax.softmax_cross_entropy_with_integer_labels(y, t).mean()
    if name == "mse_loss":
        return optax.squared_error(y, t).mean()
    return optax.sigmoid_binary_cross_entropy(y, t).mean()


def optimizer(layers: Layers, settings: Optimizer) -> Any:
    """The optimizer as a gradient transformation."""
    module: Any = gradlab_jax if layers == "gradlab" else optax
    if settings.kind == "adam":
        return module.adam(settings.lr)
    return module.sgd(settings.lr, momentum=settings.momentum or None)
