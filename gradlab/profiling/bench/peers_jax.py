"""Peers on jax: optax where jax itself has a layer too. To add one, add an entry to PEERS."""

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
        raise TypeError("optax.sigmoid_binary_cross_entropy: pos_weight is given, wanted none")
    y = optax.sigmoid_binary_cross_entropy(x, t)
    y = y if w is None else w * y
    return {"none": lambda: y, "sum": y.sum, "mean": y.mean}[reduction]()


def cross_entropy(x, target, a=None, *, ignore_index=-100, reduction="mean", **options):
    """The negative log-likelihood of a target under softmax(x[M V]); which rows count is optax's user's to say."""
    import jax.numpy as jnp
    import optax

    if a is not None or options:
        raise TypeError(f"optax.softmax_cross_entropy: {', '.join(options) or 'weight'} is given, wanted none")
    if target.ndim == 2:
        y, n = optax.softmax_cross_entropy(x, target), x.shape[0]
    else:
        valid = target != ignore_index
        y = jnp.where(valid, optax.softmax_cross_entropy_with_integer_labels(x, jnp.where(valid, target, 0)), 0)
        n = valid.sum().astype(y.dtype)
    return {"none": lambda: y, "sum": y.sum, "mean": lambda: y.sum() / n}[reduction]()


PEERS = {
    "mse_loss": [Peer("optax", "optax", "optax.squared_error", mse_loss)],
    "binary_cross_entropy_with_logits": [
        Peer("optax", "optax", "optax.sigmoid_binary_cross_entropy", binary_cross_entropy_with_logits)
    ],
    "cross_entropy": [Peer("optax", "optax", "optax.softmax_cross_entropy", cross_entropy)],
}
