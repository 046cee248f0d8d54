"""Wrong backwards of cross-entropy on jax: logits [R, C], labels [R] with -100 ignored, or targets [R, C]."""

import jax
import jax.numpy as jnp

from tests.mutants.corpus import CheckSubject, Family, change
from tests.mutants.rule_of_jax import rounded, rule, weigh


def one_hot(logits, labels):
    return (labels[:, None] == jnp.arange(logits.shape[1])).astype(logits.dtype)


def plain_cross_entropy(logits, labels):
    """The right function: the mean over the rows that are not ignored."""
    return -(one_hot(logits, labels) * jax.nn.log_softmax(logits)).sum() / (labels != -100).sum()


def rescaled(
    probabilities, divisor=lambda labels: (labels != -100).sum(), hot=one_hot, kept=lambda labels: labels != -100
):
    """(softmax - one-hot) / kept rows, zero where ignored; each argument is a place for a fault."""

    def pullback(dy, logits, labels):
        mask = kept(labels).astype(logits.dtype)[:, None]
        return dy * mask * (probabilities(logits) - hot(logits, labels)) / divisor(labels), None

    return pullback


pullback = rescaled(jax.nn.softmax)


def build(fault):
    f = rule(plain_cross_entropy, pullback, fault)

    def cross_entropy(logits, labels, ignore_index=-100):
        assert ignore_index == -100
        return f(logits, labels)

    return cross_entropy


def plain_soft(logits, targets):
    """The right function of soft targets, the mean over rows."""
    return -(targets * jax.nn.log_softmax(logits)).sum() / len(logits)


def soft_pullback(dy, logits, targets):
    dy = dy / len(logits)
    total = targets.sum(1, keepdims=True)
    return dy * (jax.nn.softmax(logits) * total - targets), -dy * jax.nn.log_softmax(logits)


def build_soft(fault):
    f = rule(plain_soft, soft_pullback, fault)

    def soft_cross_entropy(logits, targets):
        return f(logits, targets)

    return soft_cross_entropy


def make_kept(rng, size):
    r = max(4, size // 4)
    return 2 * rng.normal(size=(r, size)), rng.integers(0, size, r)


def make(rng, size):
    """With every third row ignored."""
    logits, labels = make_kept(rng, size)
    labels[1::3] = -100
    return logits, labels


def make_large(rng, size):
    logits, labels = make_kept(rng, size)
    logits[0] += 900.0
    return logits, labels


def make_soft(rng, size):
    logits, _ = make_kept(rng, size)
    targets = rng.uniform(0.1, 1.0, logits.shape)
    return logits, targets / targets.sum(1, keepdims=True)


def instead(pullback):
    """The fault that is another pullback, `pullback(dy, *args)`."""
    return lambda grads, dy, args, ctx: pullback(dy, *args)


def unshifted(logits):
    e = jnp.exp(logits)
    return e / e.sum(1, keepdims=True)


def leaky(labels):
    return jnp.ones_like(labels)


def by_index(logits, labels):
    """-100 counts from the end, or is dropped, as indices do; here it is moved to the last class."""
    return one_hot(logits, jnp.where(labels < 0, logits.shape[1] - 1, labels))


def no_hot(logits, labels):
    return jnp.zeros_like(logits)


def all_rows(labels):
    return len(labels)


def half_softmax(logits):
    return rounded(jax.nn.softmax(logits), jnp.float16)


def fixed_softmax(logits):
    return jax.lax.stop_gradient(jax.nn.softmax(logits))


FAMILY = Family("cross-entropy", "jax", build, make, plain_cross_entropy)
SOFT = Family("soft-cross-entropy", "jax", build_soft, make_soft, plain_soft)


def _(name, kind, pullback, note, **fields):
    return FAMILY.wrong(name, kind, "logits", instead(pullback), note, **fields)


SUBJECTS: tuple[CheckSubject, ...] = (
    _("no-one-hot", "gross", rescaled(jax.nn.softmax, hot=no_hot), "softmax without minus the one-hot"),
    _("no-mean", "gross", rescaled(jax.nn.softmax, lambda labels: 1), "the mean's divisor is missing"),
    _("leak", "local", rescaled(jax.nn.softmax, hot=by_index, kept=leaky), "ignored rows are of the last class"),
    _("half-softmax", "small", rescaled(half_softmax), "the softmax is kept as float16"),
    _("fixed", "order-2", rescaled(fixed_softmax), "the softmax is a constant to order 2", shows="second"),
    FAMILY.wrong("last-column", "local", "logits", change(0, lambda g: g * weigh(g, (..., -1))), "last class is zero"),
    _(
        "all-rows",
        "input-dependent",
        rescaled(jax.nn.softmax, all_rows),
        "divides by all rows, not the kept ones; the given labels ignore none",
        make=make_kept,
        trigger=make,
        shows="trigger",
    ),
    _(
        "overflow",
        "input-dependent",
        rescaled(unshifted),
        "exp without the maximum taken off, NaN past 709; the given logits are small",
        make=make_kept,
        trigger=make_large,
        shows="trigger",
    ),
    SOFT.wrong("targets-sign", "gross", "targets", change(1, jnp.negative), "log-softmax without the minus"),
)
