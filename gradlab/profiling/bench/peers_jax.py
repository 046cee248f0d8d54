"""Peers on jax: optax where jax itself has a layer too. An entry in PEERS is all that a new one takes."""

from gradlab.profiling.bench.peers import Peer


def mse_loss(x, t, *, reduction="mean"):
    """The mean of (x[E] - t[E])^2."""
    import optax

    y = optax.squared_error(x, t)
    return {"none": lambda: y, "sum": y.sum, "mean": y.mean}[reduction]()


def binary_cross_entropy_with_logits(x, t, w=None, p=None, *, reduction="mean"):
    """The negative log-likelihood of t[E] under sigmoid(x[E]); optax has no weight for the yes."""
    import optax

    if p is not None:
        raise TypeError("optax.sigmoid_binary_cross_entropy has no pos_weight")
    y = optax.sigmoid_binary_cross_entropy(x, t)
    y = y if w is None else w * y
    return {"none": lambda: y, "sum": y.sum, "mean": y.mean}[reduction]()


def cross_entropy(x, t, *, ignore_index=-100, reduction="mean"):
    """The negative log-likelihood of t[M] under softmax(x[M V]); the rows not ignored are optax's user's to pick."""
    import jax.numpy as jnp
    import optax

    valid = t != ignore_index
    y = jnp.where(valid, optax.softmax_cross_entropy_with_integer_labels(x, jnp.where(valid, t, 0)), 0)
    if reduction == "none":
        return y
    return y.sum() if reduction == "sum" else y.sum() / valid.sum().astype(y.dtype)


PEERS = {
    "mse_loss": [Peer("optax", "optax", "optax.squared_error", mse_loss)],
    "binary_cross_entropy_with_logits": [
        Peer("optax", "optax", "optax.sigmoid_binary_cross_entropy", binary_cross_entropy_with_logits)
    ],
    "cross_entropy": [Peer("optax", "optax", "optax.softmax_cross_entropy_with_integer_labels", cross_entropy)],
}
