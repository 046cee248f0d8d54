"""Wrong backwards of cross-entropy on torch: logits [R, C], labels [R] with -100 ignored, or targets [R, C]."""

import torch

from tests.mutants.corpus import CheckSubject, Family, change
from tests.mutants.rule_of_torch import rounded, rule, weigh


def plain_cross_entropy(logits, labels, ignore_index=-100):
    """The right function: the mean over the rows that are not ignored."""
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=ignore_index)


def one_hot(logits, labels):
    return (labels[:, None] == torch.arange(logits.shape[1])).to(logits.dtype)


def pullback(dy, logits, labels, ignore_index=-100):
    """(softmax - one-hot) / kept rows, zero where ignored."""
    kept = (labels != ignore_index).to(logits.dtype)[:, None]
    return dy * kept * (logits.softmax(1) - one_hot(logits, labels)) / kept.sum(), None


def build(fault):
    f = rule(plain_cross_entropy, pullback, fault)

    def cross_entropy(logits, labels, ignore_index=-100):
        return f(logits, labels, ignore_index)

    return cross_entropy


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


def plain_soft(logits, targets):
    """The right function of soft targets, the mean over rows."""
    return -(targets * logits.log_softmax(1)).sum() / logits.shape[0]


def soft_pullback(dy, logits, targets):
    dy = dy / logits.shape[0]
    return dy * (logits.softmax(1) * targets.sum(1, keepdim=True) - targets), -dy * logits.log_softmax(1)


def build_soft(fault):
    f = rule(plain_soft, soft_pullback, fault)

    def soft_cross_entropy(logits, targets):
        return f(logits, targets)

    return soft_cross_entropy


def make_weights(rng, size):
    logits, _ = make_kept(rng, size)
    return logits, rng.uniform(0.1, 1.0, logits.shape)


def make_soft(rng, size):
    logits, targets = make_weights(rng, size)
    return logits, targets / targets.sum(1, keepdims=True)


def rescaled(probabilities, divisor=None):
    """The right formula with other probabilities, or another number of rows."""

    def fault(grads, dy, args, ctx):
        logits, labels = args[:2]
        kept = (labels != -100).to(logits.dtype)[:, None]
        count = kept.sum() if divisor is None else divisor(logits)
        return dy * kept * (probabilities(logits) - one_hot(logits, labels)) / count, None

    return fault


def no_one_hot(grads, dy, args, ctx):
    kept = (args[1] != -100).to(dy.dtype)[:, None]
    return dy * kept * args[0].softmax(1) / kept.sum(), None


def leak(grads, dy, args, ctx):
    count = (args[1] != -100).sum()
    return dy * (args[0].softmax(1) - one_hot(*args[:2])) / count, None


def next_label(grads, dy, args, ctx):
    logits, labels = args[:2]
    moved = torch.where(labels >= 0, (labels + 1) % logits.shape[1], labels)
    return pullback(dy, logits, moved)


def unshifted(logits):
    e = torch.exp(logits)
    return e / e.sum(1, keepdim=True)


def unnormalised(grads, dy, args, ctx):
    return dy / args[0].shape[0] * (args[0].softmax(1) - args[1]), grads[1]


FAMILY = Family("cross-entropy", "torch", build, make, plain_cross_entropy)
SOFT = Family("soft-cross-entropy", "torch", build_soft, make_soft, plain_soft)
_, soft = FAMILY.wrong, SOFT.wrong
SUBJECTS: tuple[CheckSubject, ...] = (
    _("no-one-hot", "gross", "logits", no_one_hot, "softmax without minus the one-hot"),
    _("no-mean", "gross", "logits", rescaled(lambda z: z.softmax(1), lambda z: 1.0), "the mean's divisor is missing"),
    _("leak", "local", "logits", leak, "ignored rows get a gradient"),
    _("next-label", "gross", "logits", next_label, "the one-hot is off by one"),
    _(
        "last-column",
        "local",
        "logits",
        change(0, lambda g: g * weigh(g, (..., -1))),
        "the last class gets no gradient",
    ),
    _("first-row", "local", "logits", change(0, lambda g: g * weigh(g, 0)), "the first row gets no gradient"),
    _("constant", "small", "logits", change(0, lambda g: g + 1e-6), "1e-6 is added everywhere"),
    _(
        "half-softmax",
        "small",
        "logits",
        rescaled(lambda z: rounded(z.softmax(1), torch.float16)),
        "the softmax is kept as float16",
    ),
    _(
        "softmax-detached",
        "order-2",
        "logits",
        rescaled(lambda z: z.softmax(1).detach()),
        "the softmax is a constant to the second derivative",
        shows="second",
    ),
    _(
        "all-rows",
        "input-dependent",
        "logits",
        rescaled(lambda z: z.softmax(1), lambda z: z.shape[0]),
        "divides by all rows, not the kept ones; the given labels ignore none",
        make=make_kept,
        trigger=make,
        shows="trigger",
    ),
    _(
        "overflow",
        "input-dependent",
        "logits",
        rescaled(unshifted),
        "exp without the maximum taken off, NaN past 709; the given logits are small",
        make=make_kept,
        trigger=make_large,
        shows="trigger",
    ),
    soft("targets-sign", "gross", "targets", change(1, torch.neg), "dtargets = log-softmax, without the minus"),
    soft("targets-constant", "gross", "targets", change(1, torch.zeros_like), "targets are taken for constants"),
    soft(
        "unnormalised",
        "input-dependent",
        "logits",
        unnormalised,
        "softmax - t for softmax Σt - t; the given targets sum to 1, and only a second derivative tells",
        order=1,
        trigger=make_weights,
        shows="trigger",
    ),
)
