"""Functions on torch that are right in one call with all gradients asked for, and wrong in several or fewer."""

import torch

from tests.mutants.corpus import CheckSubject, Family, change
from tests.mutants.rule_of_torch import rule, write


def plain_wave(x, w):
    """The right function, of x's shape."""
    return torch.sin(x) * w


def wave_pullback(dy, x, w):
    return dy * torch.cos(x) * w, dy * torch.sin(x)


def build_wave(fault):
    f = rule(plain_wave, wave_pullback, fault)
    return lambda x, w: f(x, w)


def two(rng, size):
    return tuple(rng.normal(size=(2, 4, size)))


WAVE = Family("wave", "torch", build_wave, two, plain_wave)


def last_residual():
    """The residual in a variable of the module: the last forward's, whichever backward runs."""
    last = []

    def forward(x, w):
        last[:] = [x.detach()]
        return plain_wave(x, w)

    f = rule(forward, lambda dy, x, w: wave_pullback(dy, last[0], w))
    return lambda x, w: f(x, w)


def workspace(of):
    """A tensor of a shape that stays the same from call to call, filled anew with `of(*args)`."""
    held = {}

    def filled(*args):
        made = of(*args).detach()
        buffer = held.setdefault(made.shape, torch.empty_like(made))
        write(buffer, lambda a: made.numpy())
        return buffer

    return filled


def saved_workspace():
    """cos(x) is worked out in forward, and kept where the next call of that shape keeps its own."""
    kept = workspace(lambda x, w: torch.cos(x) * w)

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(kept(x, w), x)
            return plain_wave(x, w)

        @staticmethod
        def backward(ctx, dy):
            slope, x = ctx.saved_tensors
            return dy * slope, dy * torch.sin(x)

    return lambda x, w: Rule.apply(x, w)


def result_workspace():
    """The result lies where the next result of that shape will."""
    result = workspace(plain_wave)
    f = rule(lambda x, w: result(x, w).view(x.shape), wave_pullback)
    return lambda x, w: f(x, w)


def counted():
    """A call's gradients are scaled by how many are alive: a mean over steps that were not all taken yet."""
    alive = [0]

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            alive[0] = alive[0] + 1 if ctx.needs_input_grad[0] and not torch.equal(x, w) else 1
            ctx.number = alive[0]
            return plain_wave(x, w)

        @staticmethod
        def backward(ctx, dy):
            later = alive[0] - ctx.number
            return tuple(g / (1 + later) for g in wave_pullback(dy, *ctx.saved_tensors))

    return lambda x, w: Rule.apply(x, w)


def plain_product(x, w):
    """The right function."""
    return x * w


def product_pullback(dy, x, w):
    return dy * w, dy * x


def build_product(fault):
    f = rule(plain_product, product_pullback, fault)
    return lambda x, w: f(x, w)


PRODUCT = Family("product", "torch", build_product, two, plain_product)


def one_memory(x, w):
    return x.data_ptr() == w.data_ptr()


def one_of_two(grads, dy, args, ctx):
    """x * x has the gradient of x * w, once."""
    return grads[0], torch.zeros_like(grads[1]) if one_memory(*args) else grads[1]


def both_twice(grads, dy, args, ctx):
    """2 dy x for each place of x * x, which autograd adds up."""
    return tuple(2 * g for g in grads) if one_memory(*args) else grads


def plain_scores(x, w):
    """The right function: x [M, N] against w [M, N]."""
    return x @ w.T


def half_of_a_square():
    """Scores of x with itself by a rule of their own, which takes the two sides of dy for one."""
    own = rule(lambda x: x @ x.T, lambda dy, x: (2 * dy @ x,))
    cross = rule(plain_scores, lambda dy, x, w: (dy @ w, dy.T @ x))
    return lambda x, w: own(x) if x is w else cross(x, w)


def symmetric_scores(fault):
    """Right: x with itself by a rule of its own."""
    own = rule(lambda x: x @ x.T, lambda dy, x: ((dy + dy.T) @ x,))
    cross = rule(plain_scores, lambda dy, x, w: (dy @ w, dy.T @ x))
    return lambda x, w: own(x) if x is w else cross(x, w)


SCORES = Family("scores", "torch", symmetric_scores, two, plain_scores)


def plain_five(x, w, scale, shift, gate):
    """The right function of five inputs of one shape."""
    return (x * w * scale + shift) * gate


def five_pullback(dy, x, w, scale, shift, gate):
    inner = dy * gate
    return inner * w * scale, inner * x * scale, inner * x * w, inner, dy * (x * w * scale + shift)


def build_five(fault):
    f = rule(plain_five, five_pullback, fault)

    def five(x, w, scale, shift, gate):
        return f(x, w, scale, shift, gate)

    return five


def five(rng, size):
    return tuple(rng.normal(size=(5, size)))


FIVE = Family("five", "torch", build_five, five, plain_five)


def asked(ctx):
    return [i for i, needed in enumerate(ctx.needs_input_grad) if needed]


def w_with_gate(grads, dy, args, ctx):
    """The kernel for w and gate alone forgets the scale."""
    return change(1, lambda g: g / args[2])(grads, dy, args, ctx) if asked(ctx) == [1, 4] else grads


def packed(grads, dy, args, ctx):
    """Two gradients are packed into one buffer, and read from it in the other order."""
    if len(asked(ctx)) != 2:
        return grads
    i, j = asked(ctx)
    out = list(grads)
    out[i], out[j] = grads[j], grads[i]
    return tuple(out)


def _(of, name, blames, fault, shows, note, **fields):
    return of.wrong(name, "contract", blames, fault, note, shows=shows, order=1, **fields)


SUBJECTS: tuple[CheckSubject, ...] = (
    WAVE.right(order=1),
    PRODUCT.right(order=1),
    SCORES.right(order=1),
    FIVE.right(order=1),
    _(WAVE, "last-residual", "x w", None, "composed", "the last call's residual", fn=last_residual()),
    _(WAVE, "saved-workspace", "x", None, "composed", "the next call overwrites what is saved", fn=saved_workspace()),
    _(WAVE, "result-workspace", "", None, "results", "the next result overwrites this one", fn=result_workspace()),
    _(WAVE, "counted", "", None, "composed", "divided by the number of later calls", fn=counted()),
    _(PRODUCT, "same-once", "x w", one_of_two, "same", "x * x has half its gradient"),
    _(PRODUCT, "same-twice", "x w", both_twice, "same", "x * x has twice its gradient"),
    _(SCORES, "same-one-side", "x w", None, "same", "x xT as if dy were symmetric", fn=half_of_a_square()),
    _(FIVE, "w-with-gate", "w", w_with_gate, "pair", "w and gate alone: dw without the scale"),
    _(FIVE, "packed", "", packed, "pair", "any two alone: in each other's place"),
)
