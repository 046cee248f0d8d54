"""What jax asks of a custom_vjp beyond its numbers: the same under every transform, and its zeros in every form."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.autodiff.checker.finding import OK, WRONG
from gradlab.autodiff.checker.promise import Promises, first_line, refuses


def contract(p: Promises, at_size: bool = False) -> None:
    """Hold the function to all of it; a call that raises is a finding of its own.

    Args:
        at_size: only what depends on the size: memory.
    """
    if at_size:
        _unchanged(p)
        return
    for check, promise in (
        ("forward", _forward), ("eager", _eager), ("argnums", _subsets), ("each result alone", _alone),
        ("vmap", _mapped), ("checkpoint", _checkpoint), ("scan", _scan), ("float0", _float0),
        ("memory unchanged", _unchanged),
    ):  # fmt: skip
        if p.probe.subject.untraced and check not in ("eager", "memory unchanged"):
            continue
        try:
            promise(p)
        except Exception as error:
            if check in _PROMISED or (check in _OF_RULES and not refuses(error) and _has_rules(p)):
                p.say(check, WRONG, f"raises {first_line(error)}")
            else:
                p.note(f"{p.probe.subject.op}: {check} is not looked at ({first_line(error, 90)})")


# What every gradient meets.
_PROMISED = ("forward", "eager", "argnums", "each result alone", "float0")
# What a custom_vjp has by construction, unless its rules work on the host, which jax says that it does not implement.
_OF_RULES = ("vmap", "checkpoint", "scan")


def _has_rules(p: Promises) -> bool:
    """Whether the function has a custom_vjp, or a vmap of its own."""
    program = str(jax.make_jaxpr(p.probe.subject.flat)(*_leaves(p)))
    return "custom_vjp_call" in program or "custom_vmap_call" in program


def _leaves(p: Promises) -> tuple[jax.Array, ...]:
    return p.probe.subject.put(p.probe.arrays)


def _cotangents(p: Promises) -> tuple[jax.Array, ...]:
    return p.probe.subject.put_like_results(p.probe.cotangents)


def _vjp(p: Promises, fn: Callable[..., tuple[jax.Array, ...]], wrt: Sequence[int],
         leaves: Sequence[jax.Array]) -> tuple[Any, Callable[[Any], Any]]:  # fmt: skip
    """Results and pullback of `fn` for the leaves `wrt`, the others constant."""

    def of(*moving: jax.Array) -> tuple[jax.Array, ...]:
        full = list(leaves)
        for i, value in zip(wrt, moving, strict=True):
            full[i] = value
        return fn(*full)

    return jax.vjp(of, *(leaves[i] for i in wrt))


def _grads(p: Promises, fn: Callable[..., tuple[jax.Array, ...]], wrt: Sequence[int]) -> list[np.ndarray]:
    """The pullback of the probe's cotangents through `fn`, compiled."""
    leaves = _leaves(p)
    found = jax.jit(lambda ls, cs: _vjp(p, fn, wrt, ls)[1](cs))(leaves, _cotangents(p))
    return [p.probe.subject.side.take(g) for g in found]


def _forward(p: Promises) -> None:
    """Inside a vjp, forward gives the same values."""
    s = p.probe.subject
    results = jax.jit(lambda ls: _vjp(p, s.flat, s.wrt, ls)[0])(_leaves(p))
    p.same_values("forward", [s.side.take(y) for y in results], "when a gradient is recorded")


def recorded(p: Promises) -> None:
    """The gradient that is differentiated again is the gradient: a forward rule of its own gives it."""
    s = p.probe.subject
    again = jax.jit(lambda ls, cs: _vjp(p, lambda *a: s.pulled(a, cs), s.wrt, ls)[0])(_leaves(p), _cotangents(p))
    p.same_gradients("forward", [s.side.take(g) for g in again], s.wrt, "when it is differentiated again")


def _eager(p: Promises) -> None:
    """Without jit the same, also at a second point: nothing of a first call or trace is kept."""
    s = p.probe.subject
    cotangents = _cotangents(p)
    moved = [a * 1.25 if i in s.wrt else a for i, a in enumerate(p.probe.arrays)]
    for arrays, how, wanted in (
        (p.probe.arrays, "without jit", None),
        (moved, "without jit, at a second point", s.gradients(moved, p.probe.cotangents)),
    ):
        found = s.pulled(s.put(arrays), cotangents)
        p.same_gradients("eager", [s.side.take(g) for g in found], s.wrt, how, wanted)


def _subsets(p: Promises) -> None:
    """With fewer inputs perturbed, the others' symbolic zeros, each gradient is the same."""
    s = p.probe.subject
    if len(s.wrt) < 2:
        return
    for i in s.wrt:
        p.same_gradients("argnums", _grads(p, s.flat, [i]), [i], f"with a gradient for {s.names[i]} only")


def _alone(p: Promises) -> None:
    """Each result alone, the others unused, adds up to all together."""
    s = p.probe.subject
    if len(p.values) < 2:
        return
    total = [np.zeros(p.probe.arrays[i].shape) for i in s.wrt]
    cs = _cotangents(p)
    for k in range(len(cs)):
        one = jax.jit(lambda ls, c, k=k: _vjp(p, lambda *a: (s.flat(*a)[k],), s.wrt, ls)[1]((c,)))
        for whole, g in zip(total, one(_leaves(p), cs[k]), strict=True):
            whole += s.side.take(g)
    p.same_gradients("each result alone", total, s.wrt, "as the sum over the results, each pulled back alone")


def _twofold(p: Promises) -> tuple[list[jax.Array], list[jax.Array], list[int | None], list[np.ndarray]]:
    """Two points in one: leaves, cotangents, mapped axes, and the second point; the first is the probe's."""
    s = p.probe.subject
    moved = [a * 1.25 if i in s.wrt else a for i, a in enumerate(p.probe.arrays)]
    leaves = [
        jnp.stack([a, b]) if i in s.wrt else a for i, (a, b) in enumerate(zip(_leaves(p), s.put(moved), strict=True))
    ]
    axes = [0 if i in s.wrt else None for i in range(len(leaves))]
    return leaves, [jnp.stack([c, c]) for c in _cotangents(p)], axes, moved


def _mapped(p: Promises) -> None:
    """jax.vmap of the function and of its pullback give the same at each point."""
    s = p.probe.subject
    leaves, cotangents, axes, moved = _twofold(p)
    results = jax.jit(jax.vmap(s.flat, in_axes=axes))(*leaves)
    found = jax.jit(jax.vmap(s.pulled, in_axes=(axes, 0)))(leaves, tuple(cotangents))
    beside = s.values(moved), s.gradients(moved, p.probe.cotangents)
    for k, how in enumerate(("under jax.vmap", "under jax.vmap, at the second of two points")):
        values, grads = (None, None) if k == 0 else beside
        p.same_values("vmap", [s.side.take(y[k]) for y in results], how, values)
        p.same_gradients("vmap", [s.side.take(g[k]) for g in found], s.wrt, how, grads)


def _checkpoint(p: Promises) -> None:
    """Recomputed on the way back, the gradients are the same."""
    s = p.probe.subject
    p.same_gradients("checkpoint", _grads(p, jax.checkpoint(s.flat), s.wrt), s.wrt, "under jax.checkpoint")


def _scan(p: Promises) -> None:
    """As the body of a loop that is differentiated."""
    s = p.probe.subject
    leaves, cotangents, _, moved = _twofold(p)

    def looped(*moving: jax.Array) -> tuple[jax.Array, ...]:
        def body(carry: int, xs: tuple[jax.Array, ...]) -> tuple[int, tuple[jax.Array, ...]]:
            full = list(leaves)
            for i, x in zip(s.wrt, xs, strict=True):
                full[i] = x
            return carry, s.flat(*full)

        return jax.lax.scan(body, 0, moving)[1]

    found = jax.jit(lambda ls, cs: jax.vjp(looped, *ls)[1](cs))([leaves[i] for i in s.wrt], tuple(cotangents))
    p.same_gradients("scan", [s.side.take(g[0]) for g in found], s.wrt, "inside jax.lax.scan")
    beside = s.gradients(moved, p.probe.cotangents)
    p.same_gradients("scan", [s.side.take(g[1]) for g in found], s.wrt, "in the second turn of jax.lax.scan", beside)


def _float0(p: Promises) -> None:
    """Integer inputs have cotangents of float0, and everybody else's stay the same."""
    s = p.probe.subject
    leaves = _leaves(p)
    # A float that is a constant to the function has a cotangent like any other.
    whole = [i for i, leaf in enumerate(leaves) if i in s.wrt or jnp.issubdtype(leaf.dtype, jnp.integer)]
    if len(whole) == len(s.wrt):
        return
    found = _vjp(p, s.flat, whole, leaves)[1](_cotangents(p))
    for i, g in zip(whole, found, strict=True):
        if i not in s.wrt and g.dtype != jax.dtypes.float0:
            p.say("float0", WRONG, f"an integer input has a cotangent of {g.dtype}, wanted float0", s.names[i])
            return
    floats = [s.side.take(g) for i, g in zip(whole, found, strict=True) if i in s.wrt]
    p.same_gradients("float0", floats, s.wrt, "when integer inputs are differentiated too")


def _unchanged(p: Promises) -> None:
    """A callback or an aliased kernel must not write into the inputs."""
    s = p.probe.subject
    given = [*_leaves(p), *_cotangents(p)]
    names = [*s.names, *(f"dy of {p.result(k)}" for k in range(len(p.values)))]
    before = [np.array(g) if jnp.issubdtype(g.dtype, jnp.number) else None for g in given]
    jax.block_until_ready(s.pulled(given[: len(s.names)], given[len(s.names) :]))
    said = [
        name for name, g, was in zip(names, given, before, strict=True)
        if was is not None and not np.array_equal(np.asarray(g), was)
    ]  # fmt: skip
    if said:
        p.say("memory unchanged", WRONG, f"forward or backward writes into {', '.join(said)}", said[0])
    else:
        p.say("memory unchanged", OK, "inputs and dy keep their bits", "", (), {"error": 0.0})


def empty(p: Promises) -> None:
    """With a zero-length first axis, where forward takes one, gradients hold no NaN."""
    s = p.probe.subject
    leaves = _leaves(p)
    leading = next((t.shape[0] for i, t in enumerate(leaves) if i in s.wrt and t.ndim), 0)
    if not leading:
        return
    for which in (lambda k, t: k == s.wrt[0] and t.ndim, lambda k, t: t.ndim and t.shape[0] == leading):
        cut = [t[:0] if which(k, t) else t for k, t in enumerate(leaves)]
        try:
            results = s.flat(*cut)
        except Exception:
            continue
        if not all(bool(jnp.isfinite(y).all()) for y in results):
            p.note(f"{s.op}: not finite for an empty first axis")
            return
        try:
            found = _vjp(p, s.flat, s.wrt, cut)[1](tuple(jnp.ones_like(y) for y in results))
        except Exception as error:
            if refuses(error) or not _has_rules(p):
                # jax has no error for an index out of bounds, which a constant one is here.
                p.note(f"{s.op}: no gradient for an empty first axis ({first_line(error, 90)})")
            else:
                p.say("empty inputs", WRONG, f"forward takes an empty first axis, backward raises {first_line(error)}")
            return
        for i, g in zip(s.wrt, found, strict=True):
            if not jnp.isfinite(g).all():
                p.say("empty inputs", WRONG, "is not finite when the first axis is empty", s.names[i])
                return
        p.say("empty inputs", OK, "an empty first axis goes through", "", (), {"error": 0.0})
        return
    p.note(f"{s.op}: takes no empty first axis")


def compiled(p: Promises) -> None:
    """Everything else here is under jit already; eager is held against it."""
