"""Statements with mutants that the check does not find though they are wrong, and what would show them.

They count as survivors; what is here is only left out where a test wants every mutant of a sample found.
"""

THIRD = "a third derivative or a higher one; the check goes to the second"
SUBSET = "only one input requires a gradient: at the second order, or in a case that is not the first"
PRIMAL = "the gradient as jax.vjp of it returns it, beside itself: a function of it that is not linear has wrong slopes"

# fmt: off
OVERLOOKED: tuple[tuple[str, str, str], ...] = (
    ("max_pool2d_torch", "_, k, ctx.geometry, ctx.channels_last = inputs", THIRD),
    ("max_pool2d_torch",
     "return (MaxPool2dScatter.apply(dy, k, ctx.geometry, ctx.channels_last), None, None, None)", THIRD),
    ("sigmoid_torch", "dy = SigmoidBackward.apply(Multiply.apply(u, a), y, ctx.k + 1) if need_y and ctx.k < 2 else None", THIRD),
    ("tanh_torch", "dy = TanhBackward.apply(Multiply.apply(u, a), y, ctx.k + 1) if need_y and ctx.k < 2 else None", THIRD),
    ("tanh_torch", "da = TanhBackward.apply(u, y, ctx.k) if need_a else None", THIRD),
    ("binary_cross_entropy_with_logits_torch",
     "j, k, den, (need_c, need_x, need_t, *_) = (ctx.j, ctx.k, ctx.den, ctx.needs_input_grad)", SUBSET),
    ("binary_cross_entropy_with_logits_torch",
     "both = u if c is None else Multiply.apply(u, c) if need_x or need_t else None", SUBSET),
    ("mse_loss_torch",
     "num, den, (need_a, need_b, need_x, need_t, *_) = (ctx.num, ctx.den, ctx.needs_input_grad)", SUBSET),
    ("relu_jax", "return (relu_mask(x, mask), mask)", PRIMAL),
    ("sigmoid_jax", "return (slope(a, y, k), (a, y))", PRIMAL),
    ("tanh_jax", "return (slope(a, y, k), (a, y))", PRIMAL),
    ("sigmoid_jax", "return (slope(u, y, k), slope(times(u, a), y, k + 1) if k < 2 else None)", THIRD),
    ("tanh_jax", "return (slope(u, y, k), slope(times(u, a), y, k + 1) if k < 2 else None)", THIRD),
    ("mse_loss_jax", "return (differences(a, b, x, t, num, den), (a, b, x, t))", PRIMAL),
    ("max_pool2d_jax", "return (scatter(u, k, geometry), k)", PRIMAL),
    ("max_pool2d_jax", "return (gather(u, k, geometry), k)", THIRD),
    ("max_pool2d_jax", "return (scatter(dy, k, geometry), None)", THIRD),
    ("sgd_jax", "return (pullback(cp, cb, scalars, with_p), scalars)", PRIMAL),
    ("cross_entropy_jax",
     "return (backward(dy, dn, x, t, q, a, first, s, settings, axes, inplace), (dy, dn, x, t, q, a, first, s))",
     PRIMAL),
    ("binary_cross_entropy_with_logits_jax", "return (derivative(c, x, t, w, p, j, k, den), (c, x, t, w, p))", PRIMAL),
)
# fmt: on
