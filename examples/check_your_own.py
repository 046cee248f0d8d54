"""Your own backward, checked: one right and one subtly wrong, on torch and on jax, and what you see.

python examples/check_your_own.py
gradlab check examples/check_your_own.py::layer_norm
gradlab check examples/check_your_own.py::layer_norm_wrong --plot wrong.png
"""

import importlib.util

import gradlab

HAVE = {name: importlib.util.find_spec(name) is not None for name in ("torch", "jax")}

if HAVE["torch"]:
    import torch

    class LayerNorm(torch.autograd.Function):
        """y[m n] = (x - mean) / std along n, and its pullback."""

        @staticmethod
        def forward(ctx, x, subtract_mean):
            centred = x - x.mean(1, keepdim=True)
            rstd = (centred.square().mean(1, keepdim=True) + 1e-5).rsqrt()
            ctx.save_for_backward(x)
            ctx.subtract_mean = subtract_mean
            return centred * rstd

        @staticmethod
        def backward(ctx, dy):
            # Made of differentiable operations on what was saved, so that the second derivative is right too.
            (x,) = ctx.saved_tensors
            centred = x - x.mean(1, keepdim=True)
            rstd = (centred.square().mean(1, keepdim=True) + 1e-5).rsqrt()
            y = centred * rstd
            dx = dy - y * (dy * y).mean(1, keepdim=True)
            if ctx.subtract_mean:
                dx = dx - dy.mean(1, keepdim=True)
            return dx * rstd, None

    def layer_norm(x):
        """The right one."""
        return LayerNorm.apply(x, True)

    def layer_norm_wrong(x):
        """Forgets that the mean depends on x: right whenever dy has no mean, so training often seems to work."""
        return LayerNorm.apply(x, False)

    layer_norm_args = layer_norm_wrong_args = (torch.randn(6, 10, dtype=torch.float64),)

if HAVE["jax"]:
    import jax
    import jax.numpy as jnp

    def swish_rule(name, part):
        """y = x sigmoid(x), with the term of the derivative that is easily lost times `part`."""

        @jax.custom_vjp
        def swish(x):
            return x * jax.nn.sigmoid(x)

        def backward(x, dy):
            s = jax.nn.sigmoid(x)
            return (dy * (s + part * x * s * (1 - s)),)

        swish.defvjp(lambda x: (swish(x), x), backward)
        swish.__name__ = name
        return swish

    swish, swish_wrong = swish_rule("swish", 1.0), swish_rule("swish_wrong", 0.999)
    swish_args = swish_wrong_args = (jnp.linspace(-3, 3, 12).reshape(3, 4),)


def main():
    """Check all four and print what a user sees."""
    pairs = []
    if HAVE["torch"]:
        pairs += [(layer_norm, layer_norm_args), (layer_norm_wrong, layer_norm_wrong_args)]
    if HAVE["jax"]:
        pairs += [(swish, swish_args), (swish_wrong, swish_wrong_args)]
    for fn, args in pairs:
        print(gradlab.check(fn, *args, raises=False))


if __name__ == "__main__":
    main()
