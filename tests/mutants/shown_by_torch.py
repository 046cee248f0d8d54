"""How each fault of a torch subject is seen: the names of the parameters it hits, in one call of `wrong_names`."""

import inspect
import itertools
import warnings

import numpy as np
import torch

# Between the 1e-12 by which two right formulas differ in float64 and the 1e-8 of one rounding to float32.
CLOSE = 1e-9


def names(subject):
    return list(inspect.signature(subject.fn).parameters)


def put(subject, arrays, dtype=None):
    """Leaves: floats in the subject's dtype that ask for a gradient, and labels."""
    dtype = getattr(torch, dtype or subject.dtype)
    made = [torch.from_numpy(np.array(a)) for a in arrays]
    made = [t.to(dtype) if t.is_floating_point() else t for t in made]
    return [t.requires_grad_() if t.is_floating_point() or t.is_complex() else t for t in made]


def finite(t):
    return bool(t.detach().isfinite().all())


def outputs(fn, leaves):
    out = fn(*leaves)
    return out if isinstance(out, tuple) else (out,)


def cotangents(outs, seed=1):
    made = torch.Generator().manual_seed(seed)
    kinds = [torch.complex128 if o.is_complex() else torch.float64 for o in outs]
    return [torch.randn(o.shape, generator=made, dtype=k).to(o.dtype) for o, k in zip(outs, kinds, strict=True)]


def pull(outs, leaves, dys, **options):
    """One gradient for each leaf, None for labels, zeros where it does not reach."""
    asked = [t for t in leaves if t.requires_grad]
    pairs = [(o, dy) for o, dy in zip(outs, dys, strict=True) if o.requires_grad]
    if not pairs:
        return [torch.zeros_like(t) if t.requires_grad else None for t in leaves]
    outs, dys = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outs, asked, dys, allow_unused=True, **options))
    filled = [next(found) if t.requires_grad else None for t in leaves]
    return [torch.zeros_like(t) if g is None and t.requires_grad else g for t, g in zip(leaves, filled, strict=True)]


def far(a, b):
    """The largest difference by the largest right value."""
    if a is None or b is None or not b.numel():
        return 0.0
    a, b = (t.detach() if t.is_complex() else t.detach().double() for t in (a, b))
    gap = (a - b).abs().max() / b.abs().max().clamp(min=1e-300)
    return float("inf") if gap.isnan() else float(gap)


def compare(subject, left, right, limit=CLOSE):
    return {n for n, a, b in zip(names(subject), left, right, strict=False) if far(a, b) > limit}


def pulled(fn, leaves, shape_dy=lambda dy: dy, **options):
    outs = outputs(fn, leaves)
    return pull(outs, leaves, [shape_dy(dy) for dy in cotangents(outs)], **options)


def plain(subject, arrays, shape_dy=lambda dy: dy):
    """Against native autodiff; a low precision against thrice the native error."""
    leaves = put(subject, arrays)
    if subject.dtype == "float64":
        right = pulled(subject.truth, put(subject, arrays), shape_dy)
        return compare(subject, pulled(subject.fn, leaves, shape_dy), right)
    return low(subject, leaves)


def low(subject, leaves):
    """Leaves of a low precision, or of several, against the same numbers in float64."""
    exact = [t.detach().double().requires_grad_() if t.is_floating_point() else t for t in leaves]
    dys = cotangents(outputs(subject.truth, leaves))
    best = pull(outputs(subject.truth, exact), exact, [dy.double() for dy in dys])
    got, native = (pull(outputs(f, leaves), leaves, dys) for f in (subject.fn, subject.truth))
    rows = zip(names(subject), got, native, best, strict=False)
    return {n for n, a, b, c in rows if far(a, c) > 3 * far(b, c) + CLOSE}


def given(subject, arrays):
    leaves = subject.given([t.detach() for t in put(subject, arrays)])
    return low(subject, [t.detach().requires_grad_() if t.is_floating_point() else t for t in leaves])


def per_sample(subject, arrays):
    """Two samples by vmap against a loop, with every input or one alone of each sample's own."""
    plain, hit = [t.detach() for t in put(subject, arrays)], set()
    other = [2 * t for t in plain]
    dys = cotangents(outputs(subject.fn, plain))

    def pulled_back(*leaves):
        return torch.func.vjp(lambda *a: outputs(subject.fn, a), *leaves)[1](tuple(dys))

    for own in (range(len(plain)), *([i] for i in range(len(plain)))):
        samples = [plain, [b if i in own else a for i, (a, b) in enumerate(zip(plain, other, strict=True))]]
        given = [torch.stack(pair) if i in own else pair[0] for i, pair in enumerate(zip(*samples, strict=True))]
        dims = tuple(0 if i in own else None for i in range(len(plain)))
        found = torch.func.vmap(pulled_back, in_dims=dims)(*given)
        for k, sample in enumerate(samples):
            leaves = [t.detach().requires_grad_() for t in sample]
            hit |= compare(subject, [g[k] for g in found], pull(outputs(subject.truth, leaves), leaves, dys))
    return hit


def autocast(subject, arrays):
    """Against thrice the native error there."""
    leaves = put(subject, arrays, "float32")
    exact = [t.detach().double().requires_grad_() for t in leaves]
    dys = cotangents(outputs(subject.truth, leaves))
    best, found = pull(outputs(subject.truth, exact), exact, [dy.double() for dy in dys]), []
    for fn in (subject.fn, subject.truth):
        with torch.autocast("cpu", torch.bfloat16):
            outs = outputs(fn, leaves)
        found.append(pull(outs, leaves, [dy.to(o.dtype) for dy, o in zip(dys, outs, strict=True)]))
    rows = zip(names(subject), *found, best, strict=True)
    return {n for n, a, b, c in rows if far(a, c) > 3 * far(b, c) + CLOSE}


def grad_there(subject, arrays):
    hit = set()
    for layout in (lambda t: t, lambda t: t.T.contiguous().T):
        pair = []
        for fn in (subject.fn, subject.truth):
            leaves = put(subject, arrays)
            for t in leaves:
                t.grad = layout(torch.ones_like(t))
            for _ in range(2):
                outs = outputs(fn, leaves)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # another layout is slower, torch warns
                    torch.autograd.backward(outs, cotangents(outs))
            pair.append([t.grad for t in leaves])
        hit |= compare(subject, *pair)
    return hit


def forward_mode(subject, arrays):
    hit = set()
    for i, name in enumerate(names(subject)):
        pair = []
        for fn in (subject.fn, subject.truth):
            leaves = [t.detach() for t in put(subject, arrays)]
            tangents = [torch.ones_like(t) * (k == i) for k, t in enumerate(leaves)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's first call brings in scripts that it warns of
                pair.append(torch.func.jvp(lambda *a, fn=fn: outputs(fn, a), tuple(leaves), tuple(tangents))[1])
        hit |= {name} if any(far(a, b) > CLOSE for a, b in zip(*pair, strict=True)) else set()
    return hit


def second(subject, arrays):
    def derivatives(fn):
        leaves = put(subject, arrays)
        outs = outputs(fn, leaves)
        dys = [dy.requires_grad_() for dy in cotangents(outs)]
        grads = pull(outs, leaves, dys, create_graph=True)
        asked = [*leaves, *dys]
        weights = cotangents([t for t in leaves if t.requires_grad], seed=2)
        rows = []
        for g in grads:
            if g is None:
                rows.append(None)
                continue
            parts = pull([g], asked, [weights.pop(0)], retain_graph=True)
            rows.append(torch.cat([p.flatten() for p in parts if p is not None]))
        return rows

    return compare(subject, derivatives(subject.fn), derivatives(subject.truth), 10 * CLOSE)


def repeat(subject, arrays):
    leaves = put(subject, arrays)
    first, *rest = [pulled(subject.fn, leaves) for _ in range(6)]
    return set().union(*(compare(subject, again, first, 0.0) for again in rest))


def subset(subject, arrays):
    hit = set()
    for name, a in zip(names(subject), put(subject, arrays), strict=False):
        alone = [t.detach().requires_grad_(t is a) for t in put(subject, arrays)]
        alone = [t.requires_grad_() if n == name else t for n, t in zip(names(subject), alone, strict=False)]
        left, right = pulled(subject.fn, alone), pulled(subject.truth, alone)
        hit |= compare(subject, left, right)
    return hit


def strided(subject, arrays):
    leaves = [t.detach().T.contiguous().T.requires_grad_() if t.ndim == 2 else t for t in put(subject, arrays)]
    return compare(subject, pulled(subject.fn, leaves), pulled(subject.truth, leaves))


def twice(subject, arrays):
    leaves = put(subject, arrays)
    outs = outputs(subject.fn, leaves)
    dys = cotangents(outs)
    pull(outs, leaves, dys, retain_graph=True)
    return compare(subject, pull(outs, leaves, dys), pulled(subject.truth, leaves))


def changes_cotangent(subject, arrays):
    leaves = put(subject, arrays)
    outs = outputs(subject.fn, leaves)
    dys = cotangents(outs)
    pull(outs, leaves, dys)
    return {"dy" for a, b in zip(dys, cotangents(outs), strict=True) if far(a, b) > 0}


def changes_input(subject, arrays):
    leaves = put(subject, arrays)
    pulled(subject.fn, leaves)
    return compare(subject, leaves, put(subject, arrays), 0.0)


def unwritten(subject, arrays):
    """Fresh memory is NaN in torch's deterministic mode."""
    torch.use_deterministic_algorithms(True)
    try:
        return plain(subject, arrays)
    finally:
        torch.use_deterministic_algorithms(False)


def one_output(subject, arrays):
    hit = set()
    for i in range(len(outputs(subject.fn, put(subject, arrays)))):
        leaves = put(subject, arrays)
        pairs = []
        for f in (subject.fn, subject.truth):
            outs = outputs(f, leaves)
            pairs.append(pull(outs[i : i + 1], leaves, cotangents(outs)[i : i + 1]))
        hit |= compare(subject, *pairs)
    return hit


def kept(subject, arrays):
    leaves = put(subject, arrays)
    first = pulled(subject.fn, leaves)
    copies = [g.clone() for g in first]
    pulled(subject.fn, put(subject, [2.0 * a for a in arrays]))
    return compare(subject, first, copies, 0.0)


def stale(subject, arrays):
    pulled(subject.fn, put(subject, [2.0 * a for a in arrays]))
    return plain(subject, arrays)


def forward(subject, arrays):
    leaves = put(subject, arrays)
    pairs = zip(outputs(subject.fn, leaves), outputs(subject.reference, leaves), strict=True)
    return {"value" for a, b in pairs if far(a, b) > CLOSE}


def composed(subject, arrays):
    """The function on its own result, in the first place."""
    pair = []
    for f in (subject.fn, subject.truth):
        leaves = put(subject, arrays)
        outs = outputs(f, [f(*leaves), *leaves[1:]])
        pair.append(pull(outs, leaves, cotangents(outs)))
    return compare(subject, *pair)


def results(subject, arrays):
    """A result against itself after another call."""
    first = outputs(subject.fn, put(subject, arrays))
    copies = [y.detach().clone() for y in first]
    outputs(subject.fn, put(subject, [2.0 * a for a in arrays]))
    return {"value" for a, b in zip(first, copies, strict=True) if far(a, b) > 0}


def same(subject, arrays):
    """One tensor for all arguments: each has the whole gradient."""
    pair = []
    for f in (subject.fn, subject.truth):
        leaf = put(subject, arrays)[0]
        outs = outputs(f, [leaf] * len(arrays))
        pair.append(pull(outs, [leaf], cotangents(outs)) * len(arrays))
    return compare(subject, *pair)


def pair_of_inputs(subject, arrays):
    hit = set()
    for two in itertools.combinations(range(len(arrays)), 2):
        sides = []
        for f in (subject.fn, subject.truth):
            leaves = [t if i in two else t.detach() for i, t in enumerate(put(subject, arrays))]
            sides.append(pulled(f, leaves))
        hit |= compare(subject, *sides)
    return hit


def special_dy(subject, arrays):
    """Each as a whole against native autodiff; where that is 0 nothing else is right."""

    def one(dy):
        flat = torch.zeros_like(dy).flatten()
        flat[len(flat) // 2] = 1.0
        return flat.view_as(dy)

    def no_column(dy):
        return torch.cat([0 * dy[..., :1], dy[..., 1:]], -1)

    shapes = [one, no_column, torch.ones_like, torch.zeros_like, lambda dy: torch.full_like(dy, 0.3)]
    shapes += [lambda dy, size=size: size * dy for size in (1e-12, 1e-30, 1e6)]
    return set().union(*(plain(subject, arrays, shape) for shape in shapes))


def hidden(subject, arrays):
    """Element by element, each relative to itself."""
    left, right = (pulled(f, put(subject, arrays)) for f in (subject.fn, subject.truth))
    rows = zip(names(subject), left, right, strict=True)
    return {n for n, a, b in rows if ((a - b).abs() > 1e-6 * b.abs()).any()}


SHOWN = {
    "plain": plain,
    "composed": composed,
    "results": results,
    "same": same,
    "pair": pair_of_inputs,
    "special-dy": special_dy,
    "hidden": hidden,
    "forward": forward,
    "second": second,
    "repeat": repeat,
    "stale": stale,
    "trigger": plain,
    "empty": plain,
    "expanded": lambda s, a: plain(s, a, lambda dy: dy[..., :1].expand(dy.shape)),
    "strided-cotangent": lambda s, a: plain(s, a, lambda dy: dy.T.contiguous().T),
    "strided": strided,
    "subset": subset,
    "twice": twice,
    "changes-cotangent": changes_cotangent,
    "changes-input": changes_input,
    "unwritten": unwritten,
    "one-output": one_output,
    "kept": kept,
    "given": given,
    "per-sample": per_sample,
    "autocast": autocast,
    "grad-there": grad_there,
    "forward-mode": forward_mode,
}


def wrong_names(subject, shows, arrays):
    """The parameters with a wrong gradient where the fault is looked for as `shows`; all of them if it raises."""
    try:
        return SHOWN[shows](subject, arrays)
    except (RuntimeError, TypeError, IndexError):
        return set(names(subject))
