"""Backwards on torch that are right on one fresh contiguous call and break what autograd promises elsewhere."""

import torch

from tests.mutants.corpus import CheckSubject, Family
from tests.mutants.linear_torch import FAMILY, plain_linear, pullback
from tests.mutants.rule_of_torch import as_if_contiguous, rule, write
from tests.mutants.small_torch import RELU


def cotangent_as_contiguous(grads, dy, args, ctx):
    return pullback(as_if_contiguous(dy), *args)


def expanded_as_contiguous(grads, dy, args, ctx):
    return pullback(as_if_contiguous(dy) if 0 in dy.stride() else dy, *args)


def first_element(grads, dy, args, ctx):
    return pullback(dy[0, 0].expand_as(dy) if 0 in dy.stride() else dy, *args)


def input_as_contiguous(grads, dy, args, ctx):
    return grads[0], dy.T @ as_if_contiguous(args[0]), grads[2]


def other_flag(grads, dy, args, ctx):
    """dw is written where x asks for a gradient; the buffer is zero otherwise."""
    return grads[0], grads[1] if ctx.needs_input_grad[0] else torch.zeros_like(grads[1]), grads[2]


def none_for_bias(grads, dy, args, ctx):
    return *grads[:2], grads[2] if ctx.needs_input_grad[1] else None


def scaled_cotangent(grads, dy, args, ctx):
    grads = tuple(g.clone() for g in grads)
    write(dy, lambda a: 0.5 * a)
    return grads


def centred_input(grads, dy, args, ctx):
    write(args[0], lambda a: a - a.mean(0))
    return grads


def unwritten_bias(grads, dy, args, ctx):
    """A copy with a gradient for all but the last element, which stays as it was allocated."""
    buffer = torch.empty_like(grads[2])
    return *grads[:2], torch.cat([grads[2][:-1], buffer[-1:]])


def past_the_end(grads, dy, args, ctx):
    """dw and db share one buffer, and dw's kernel writes one element too many."""
    n = grads[1].numel()
    buffer = torch.cat([grads[1].flatten(), grads[2]])
    buffer = torch.where(torch.arange(len(buffer)) == n, buffer[n - 1], buffer)
    return grads[0], buffer[:n].view_as(grads[1]), buffer[n:]


def adds_up(grads, dy, args, ctx):
    """dw is added to a buffer that lives as long as the graph."""
    ctx.total = getattr(ctx, "total", 0) + grads[1]
    return grads[0], ctx.total, grads[2]


def float32_gradient(grads, dy, args, ctx):
    return grads[0], grads[1].float(), grads[2]


def broadcast_bias(grads, dy, args, ctx):
    """The sum repeated for every row; autograd sums it once more."""
    return *grads[:2], grads[2].expand_as(dy)


def first_row_starts(grads, dy, args, ctx):
    return *grads[:2], dy[0] + dy[1:].sum(0)


BUFFERS: dict[torch.Size, torch.Tensor] = {}


def reused_buffer(grads, dy, args, ctx):
    """dw is written to a workspace that the next call of the same shape gets as well."""
    buffer = BUFFERS.setdefault(grads[1].shape, torch.empty_like(grads[1]).detach())
    write(buffer, lambda a: grads[1].detach().numpy())
    return grads[0], buffer, grads[2]


def make_transposed(rng, size):
    """As many rows as columns, so that a kernel that ignores strides stays inside its memory."""
    return rng.normal(size=(size, size)), *FAMILY.make(rng, size)[1:]


def make_empty(rng, size):
    return rng.normal(size=(0, size)), *FAMILY.make(rng, size)[1:]


def overwriting_relu(x):
    """Writes its result over its input."""
    write(x, lambda a: a.clip(0))
    return torch.relu(x)


OVERWRITING = rule(overwriting_relu, lambda dy, x: (dy * (x > 0),))


def plain_two(x, w):
    """The right function of two outputs."""
    return x * w, torch.sin(x) + w


def two_pullback(dy, x, w):
    """With None for the output that nobody uses."""
    first, second = dy
    dx, dw = torch.zeros_like(x), torch.zeros_like(w)
    if first is not None:
        dx, dw = dx + first * w, dw + first * x
    if second is not None:
        dx, dw = dx + second * torch.cos(x), dw + second
    return dx, dw


def build_two(fault):
    f = rule(plain_two, two_pullback, fault, materialize=False)

    def two(x, w):
        return f(x, w)

    return two


def both_or_none(grads, dy, args, ctx):
    return grads if None not in dy else tuple(torch.zeros_like(g) for g in grads)


def first_for_second(grads, dy, args, ctx):
    first, second = dy
    return two_pullback((first, first if second is None else second), *args)


def raises_on_none(grads, dy, args, ctx):
    return dy[0] * args[1] + dy[1] * torch.cos(args[0]), grads[1]


TWO = Family("two-outputs", "torch", build_two, lambda rng, n: tuple(rng.normal(size=(2, n))), plain_two)


def _(name, blames, fault, shows, note, **fields):
    return FAMILY.wrong(name, "contract", blames, fault, note, shows=shows, **fields)


SUBJECTS: tuple[CheckSubject, ...] = (
    _("cotangent-strides", "", cotangent_as_contiguous, "strided-cotangent", "takes dy for contiguous"),
    _("cotangent-expanded", "", expanded_as_contiguous, "expanded", "reads on in a dy of stride 0"),
    _("cotangent-first", "", first_element, "expanded", "takes a dy of stride 0 for one number"),
    _("input-strides", "w", input_as_contiguous, "strided", "takes x for contiguous", make=make_transposed),
    _("other-flag", "w", other_flag, "subset", "dw is zero unless x asks for a gradient"),
    _("none-for-bias", "b", none_for_bias, "subset", "db is None unless w asks for a gradient"),
    _("cotangent-written", "", scaled_cotangent, "changes-cotangent", "halves dy in place"),
    _("input-written", "", centred_input, "changes-input", "centres x in place, in backward"),
    _("unwritten", "b", unwritten_bias, "unwritten", "the last element of db is never written"),
    _("past-the-end", "b", past_the_end, "plain", "dw's kernel writes the first element of db"),
    _("adds-up", "w", adds_up, "twice", "a second backward over the graph returns twice dw"),
    _("float32-gradient", "w", float32_gradient, "plain", "dw is handed over in float32, and cast back"),
    _("bias-shape", "b", broadcast_bias, "plain", "db is [M, N], the sum in every row"),
    _("empty", "", first_row_starts, "empty", "an empty batch raises", trigger=make_empty),
    _("reused-buffer", "w", reused_buffer, "kept", "the next call overwrites dw", order=1, truth=plain_linear),
    RELU.wrong(
        "forward-in-place",
        "contract",
        "",
        None,
        "the forward writes its result over x as well",
        fn=lambda x: OVERWRITING(x),
        shows="changes-input",
    ),
    TWO.wrong("both-or-none", "contract", "", both_or_none, "zero unless both outputs are used", shows="one-output"),
    TWO.wrong("first-for-second", "contract", "", first_for_second, "the other's cotangent", shows="one-output"),
    TWO.wrong("raises-on-none", "contract", "", raises_on_none, "raises unless both are used", shows="one-output"),
)
