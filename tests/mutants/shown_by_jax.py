"""How each fault of a jax subject is seen: the names of the parameters it hits, in one call of `wrong_names`."""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np

# Between the 1e-12 by which two right formulas differ in float64 and the 1e-8 of one rounding to float32.
CLOSE = 1e-9


def names(subject):
    return list(inspect.signature(subject.fn).parameters)


def finite(a):
    return bool(jnp.isfinite(a).all())


def floats(a):
    return jnp.issubdtype(a.dtype, jnp.inexact)


def put(subject, arrays, dtype=None):
    """Floats in the subject's dtype, and labels."""
    made = [jnp.asarray(a) for a in arrays]
    return [a.astype(dtype or subject.dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in made]


def outputs(fn, leaves):
    out = fn(*leaves)
    return out if isinstance(out, tuple) else (out,)


def cotangents(outs, seed=1):
    rng = np.random.default_rng(seed)
    made = [rng.normal(size=o.shape) + (1j * rng.normal(size=o.shape) if jnp.iscomplexobj(o) else 0) for o in outs]
    return [jnp.asarray(dy).astype(o.dtype) for dy, o in zip(made, outs, strict=True)]


def pull(fn, leaves, dys=None):
    """One gradient for each leaf, None for labels; `dys` for the first outputs, all by default."""
    outs, back = jax.vjp(lambda *leaves: outputs(fn, leaves), *leaves)
    grads = back(tuple(cotangents(outs) if dys is None else dys))
    return [g if floats(a) else None for a, g in zip(leaves, grads, strict=True)]


@functools.cache
def native(truth):
    """A truth's gradients, compiled once for all mutants of its family."""
    return jax.jit(lambda leaves: pull(truth, leaves))


def pulled(fn, leaves):
    return pull(fn, leaves)


def far(a, b):
    """The largest difference by the largest right value."""
    if a is None or b is None or not b.size:
        return 0.0
    a, b = (np.asarray(t) if jnp.iscomplexobj(t) else np.asarray(t, np.float64) for t in (a, b))
    gap = np.abs(a - b).max() / max(np.abs(b).max(), 1e-300)
    return float("inf") if np.isnan(gap) else float(gap)


def compare(subject, left, right, limit=CLOSE):
    return {n for n, a, b in zip(names(subject), left, right, strict=False) if far(a, b) > limit}


def plain(subject, arrays):
    """Against native autodiff; a low precision against thrice the native error."""
    leaves = put(subject, arrays)
    if subject.dtype == "float64":
        return compare(subject, pull(subject.fn, leaves), native(subject.truth)(leaves))
    return low(subject, leaves)


def low(subject, leaves):
    """Leaves of a low precision, or of several, against the same numbers in float64."""
    exact = [a.astype("float64") if floats(a) else a for a in leaves]
    dys = cotangents(outputs(subject.truth, leaves))
    best = pull(subject.truth, exact, [dy.astype("float64") for dy in dys])
    rows = zip(names(subject), pull(subject.fn, leaves), pull(subject.truth, leaves), best, strict=False)
    return {n for n, a, b, c in rows if far(a, c) > 3 * far(b, c) + CLOSE}


def derivatives(fn, leaves, dys):
    """For each gradient its derivatives by all inputs and cotangents, in one row."""
    inputs = [a for a in leaves if floats(a)]

    def gradients(inputs, dys):
        parts = iter(inputs)
        return [g for g in pull(fn, [next(parts) if floats(a) else a for a in leaves], dys) if g is not None]

    grads, back = jax.vjp(gradients, inputs, dys)
    weights, rows = cotangents(grads, seed=2), []
    for i in range(len(grads)):
        alone = [w if i == j else jnp.zeros_like(w) for j, w in enumerate(weights)]
        rows.append(jnp.concatenate([p.ravel() for p in jax.tree.leaves(back(alone))]))
    rows = iter(rows)
    return [next(rows) if floats(a) else None for a in leaves]


@functools.cache
def native_derivatives(truth):
    return jax.jit(functools.partial(derivatives, truth))


def second(subject, arrays):
    leaves = put(subject, arrays)
    dys = cotangents(outputs(subject.fn, leaves))
    right = native_derivatives(subject.truth)(leaves, dys)
    return compare(subject, derivatives(subject.fn, leaves, dys), right, 10 * CLOSE)


def repeat(subject, arrays):
    leaves = put(subject, arrays)
    first, *rest = [pull(subject.fn, leaves) for _ in range(6)]
    return set().union(*(compare(subject, again, first, 0.0) for again in rest))


def stale(subject, arrays):
    pull(subject.fn, put(subject, [2.0 * a for a in arrays]))
    return plain(subject, arrays)


def subset(subject, arrays):
    leaves, hit = put(subject, arrays), set()
    for i, name in enumerate(names(subject)[: len(leaves)]):
        pair = []
        for fn in (subject.fn, subject.truth):
            pair += pull(lambda a, fn=fn, i=i: fn(*leaves[:i], a, *leaves[i + 1 :]), leaves[i : i + 1])
        hit |= {name} if far(*pair) > CLOSE else set()
    return hit


def one_output(subject, arrays):
    leaves, hit = put(subject, arrays), set()
    for i in range(len(outputs(subject.truth, leaves))):
        pair = [pull(lambda *a, fn=fn, i=i: fn(*a)[i], leaves) for fn in (subject.fn, subject.truth)]
        hit |= compare(subject, *pair)
    return hit


def given(subject, arrays):
    return low(subject, subject.given(put(subject, arrays)))


def without_x64(subject, arrays):
    """In float32 as jax is run by default, against thrice the native error there."""
    leaves = put(subject, arrays, "float32")
    dys = cotangents(outputs(subject.truth, leaves))
    best = pull(subject.truth, [a.astype("float64") for a in leaves], [dy.astype("float64") for dy in dys])
    with jax.enable_x64(False):
        got, right = pull(subject.fn, leaves, dys), pull(subject.truth, leaves, dys)
    rows = zip(names(subject), got, right, best, strict=False)
    return {n for n, a, b, c in rows if far(a, c) > 3 * far(b, c) + 1e-6}


def per_sample(subject, arrays):
    """Two samples of one input by vmap against a loop, the others shared."""
    leaves, hit = put(subject, arrays), set()
    dys = cotangents(outputs(subject.fn, leaves))
    for i in range(len(leaves)):
        axes = [0 if k == i else None for k in range(len(leaves))]
        given = [jnp.stack([a, 2 * a]) if k == i else a for k, a in enumerate(leaves)]
        found = jax.vmap(lambda *a: pull(subject.fn, a, dys), axes)(*given)
        for n in range(2):
            sample = [g[n] if k == i else g for k, g in enumerate(given)]
            hit |= compare(subject, [g[n] for g in found], pull(subject.truth, sample, dys))
    return hit


def forward_mode(subject, arrays):
    leaves, hit = put(subject, arrays), set()
    for i, name in enumerate(names(subject)):
        tangents = [jnp.ones_like(a) * (k == i) for k, a in enumerate(leaves)]
        pair = [jax.jvp(fn, leaves, tangents)[1] for fn in (subject.fn, subject.truth)]
        hit |= {name} if far(*pair) > CLOSE else set()
    return hit


def under_vmap(subject, arrays):
    """The gradients of three examples at once against one by one."""
    batch = [jnp.stack([s * a for s in (1.0, 2.0, 3.0)]) for a in put(subject, arrays)]
    dys = [jnp.stack([dy] * 3) for dy in cotangents(outputs(subject.fn, put(subject, arrays)))]
    left = jax.vmap(lambda leaves, dys: pull(subject.fn, leaves, dys))(batch, dys)
    right = jax.vmap(lambda leaves, dys: pull(subject.truth, leaves, dys))(batch, dys)
    return compare(subject, left, right)


def under_jit(subject, arrays):
    leaves = put(subject, arrays)
    return compare(subject, jax.jit(lambda *a: pull(subject.fn, a))(*leaves), pull(subject.truth, leaves))


def composed(subject, arrays):
    leaves = put(subject, arrays)
    pair = [pull(lambda a, *rest, fn=fn: fn(fn(a, *rest), *rest), leaves) for fn in (subject.fn, subject.truth)]
    return compare(subject, *pair)


def forward(subject, arrays):
    leaves = put(subject, arrays)
    pairs = zip(outputs(subject.fn, leaves), outputs(subject.reference, leaves), strict=True)
    return {"value" for a, b in pairs if far(a, b) > CLOSE}


def same(subject, arrays):
    """One array for all arguments: each has the whole gradient."""
    leaf = put(subject, arrays)[0]
    sides = []
    for f in (subject.fn, subject.truth):
        sides.append(pull(lambda a, f=f: f(*[a] * len(arrays)), [leaf]) * len(arrays))
    return compare(subject, *sides)


def pair_of_inputs(subject, arrays):
    leaves, hit = put(subject, arrays), set()
    for two in itertools.combinations(range(len(leaves)), 2):
        sides = []
        for fn in (subject.fn, subject.truth):

            def of(a, b, fn=fn, two=two):
                return fn(*({two[0]: a, two[1]: b}.get(i, leaf) for i, leaf in enumerate(leaves)))

            sides.append(pull(of, [leaves[i] for i in two]))
        rows = zip(two, *sides, strict=True)
        hit |= {names(subject)[i] for i, a, b in rows if far(a, b) > CLOSE}
    return hit


def special_dy(subject, arrays):
    """Each as a whole against native autodiff; where that is 0 nothing else is right."""
    leaves = put(subject, arrays)
    (dy,) = cotangents(outputs(subject.fn, leaves))
    shapes = [jnp.zeros_like(dy).at[0, -1].set(1.0), dy.at[..., 0].set(0.0), jnp.ones_like(dy), jnp.zeros_like(dy)]
    shapes += [jnp.full_like(dy, 0.3), *(size * dy for size in (1e-12, 1e-30, 1e6))]
    pairs = [[pull(f, leaves, [c]) for f in (subject.fn, subject.truth)] for c in shapes]
    return set().union(*(compare(subject, *pair) for pair in pairs))


def hidden(subject, arrays):
    """Element by element, each relative to itself."""
    rows = zip(names(subject), *(pull(f, put(subject, arrays)) for f in (subject.fn, subject.truth)), strict=True)
    return {n for n, a, b in rows if (jnp.abs(a - b) > 1e-6 * jnp.abs(b)).any()}


SHOWN = {
    "plain": plain,
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
    "subset": subset,
    "one-output": one_output,
    "vmap": under_vmap,
    "jit": under_jit,
    "composed": composed,
    "given": given,
    "x64-off": without_x64,
    "per-sample": per_sample,
    "forward-mode": forward_mode,
}


def wrong_names(subject, shows, arrays):
    """The parameters with a wrong gradient where the fault is looked for as `shows`; all of them if it raises."""
    try:
        return SHOWN[shows](subject, arrays)
    except (RuntimeError, TypeError, IndexError, ValueError):
        return set(names(subject))
