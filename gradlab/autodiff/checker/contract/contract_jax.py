"""What jax asks of a custom_vjp beyond its numbers: the same under every transform, and its zeros in every form."""

import contextlib
import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.autodiff.checker.contract.eager_jax import by_hand, too_many
from gradlab.autodiff.checker.contract.given_jax import given
from gradlab.autodiff.checker.contract.transforms_jax import forward_mode, per_sample
from gradlab.autodiff.checker.core.comparison import Promises, first_line, refuses
from gradlab.autodiff.checker.core.finding import OK, WRONG
from gradlab.autodiff.checker.core.subject import Subject

Leaves = tuple[Any, ...]
Way = Callable[[Leaves, Leaves, Leaves], Any]
Asked = Generator[Way, Any, None]


def contract(p: Promises, at_size: bool = False) -> None:
    """Hold the function to all of it; a call that raises is a finding of its own.

    Args:
        at_size: only what depends on the size: memory.
    """
    s = p.probe.subject
    if not at_size and not s.untraced:
        _compiled(
            p,
            {
                "forward": _forward,
                "argnums": _subsets,
                "each result alone": _alone,
                "vmap": _mapped,
                "checkpoint": _checkpoint,
                "scan": _scan,
                "float0": _float0,
                "per-sample gradients": per_sample,
                "forward mode": forward_mode,
            },
        )
        _guarded(p, "as they were given", functools.partial(given, p))
    eagerly = not at_size and (s.untraced or _worth_running_eagerly(p))
    if eagerly:
        _guarded(p, "eager", functools.partial(_eager, p))
    _guarded(p, "memory unchanged", functools.partial(_unchanged, p, eagerly))


# What every gradient meets.
_PROMISED = ("forward", "eager", "argnums", "each result alone", "float0")
# What a custom_vjp has by construction, unless its rules work on the host, which jax says that it does not implement.
_OF_RULES = ("vmap", "checkpoint", "scan")


def _has_rules(p: Promises) -> bool:
    """Whether the function has a custom_vjp, or a vmap of its own."""
    program = str(jax.make_jaxpr(p.probe.subject.flat)(*_leaves(p)))
    return "custom_vjp_call" in program or "custom_vmap_call" in program


def _guarded(p: Promises, check: str, look: Callable[[], None]) -> None:
    try:
        look()
    except Exception as error:
        if check in _PROMISED or (check in _OF_RULES and not refuses(error) and _has_rules(p)):
            p.say(check, WRONG, f"raises {first_line(error)}")
        else:
            p.note(f"{p.probe.subject.op}: {check} is not looked at ({first_line(error, 90)})")


def _compiled(p: Promises, promises: Mapping[str, Callable[[Promises], Asked]]) -> None:
    """Promises that yield a way to their numbers, (leaves, cotangents, leaves of a second point) -> arrays, and are
    sent these: all ways are one program, as compiling each takes longer."""
    asked: dict[str, Asked] = {}
    ways: dict[str, Way] = {}
    for check, promise in promises.items():
        started = promise(p)
        way = next(started, None)
        if way is not None:
            asked[check], ways[check] = started, way
    found = _numbers(p, ways)
    for check, judge in asked.items():
        _guarded(p, check, functools.partial(_judged, judge, found[check]))


def _judged(judge: Asked, found: Any) -> None:
    """Send a promise its numbers, or raise what kept them from it."""
    if isinstance(found, Exception):
        raise found
    with contextlib.suppress(StopIteration):
        judge.send(found)


def _numbers(p: Promises, ways: Mapping[str, Way]) -> dict[str, Any]:
    """By name what a way gives, as NumPy's arrays, or the exception that it raises."""
    s = p.probe.subject
    given = (_leaves(p), _cotangents(p), s.put(_moved(p)))
    raised: dict[str, Any] = {}

    def every(*given: Leaves) -> dict[str, Any]:
        found = {}
        for check, way in ways.items():
            try:
                found[check] = way(*given)
            except Exception as error:
                raised[check] = error
        return found

    try:
        found = s.quickened(every)(*given)
    except Exception as error:
        if len(ways) == 1:
            return dict.fromkeys(ways, error)
        # One of them does not compile or run: which, each alone says.
        return {check: _numbers(p, {check: way})[check] for check, way in ways.items()}
    return jax.tree.map(s.side.take, found) | raised


def _worth_running_eagerly(p: Promises) -> bool:
    """Whether the function is run without jit, where every operation is compiled alone; a note where it costs much."""
    s = p.probe.subject
    if not ruled(p):
        return False
    many = too_many(s, _cotangents(p))
    if many:
        p.note(f"{s.op}: for its cost not run without jit: {many} operations would be compiled one by one")
    return not many


def _leaves(p: Promises) -> Leaves:
    return p.probe.subject.put(p.probe.arrays)


def _cotangents(p: Promises) -> Leaves:
    return p.probe.subject.put_like_results(p.probe.cotangents)


def _moved(p: Promises) -> list[np.ndarray]:
    """A second point."""
    return [a * 1.25 if i in p.probe.subject.wrt else a for i, a in enumerate(p.probe.arrays)]


def _vjp(fn: Callable[..., Leaves], wrt: Sequence[int], leaves: Leaves) -> tuple[Any, Callable[[Any], Any]]:
    """Results and pullback of `fn` for the leaves `wrt`, the others constant."""

    def of(*moving: jax.Array) -> Leaves:
        full = list(leaves)
        for i, value in zip(wrt, moving, strict=True):
            full[i] = value
        return fn(*full)

    return jax.vjp(of, *(leaves[i] for i in wrt))


def _forward(p: Promises) -> Asked:
    """Inside a vjp, forward gives the same values."""
    s = p.probe.subject
    results = yield lambda ls, cs, moved: _vjp(s.flat, s.wrt, ls)[0]
    p.same_values("forward", results, "when a gradient is recorded")


def recorded(
    p: Promises, kinds: Sequence[Subject], arrays: Sequence[np.ndarray], weights: Sequence[np.ndarray]
) -> list[list[np.ndarray]]:
    """The gradient that is differentiated again is the gradient: a forward rule of its own gives it.

    Returns:
        the pullbacks of `weights` by each of these kinds of pullback, all by one program.
    """
    s, kind = p.probe.subject, kinds[0]

    def every(given: Leaves, ws: Leaves) -> tuple[Any, list[Any]]:
        ls, cs = given[: len(s.leaves)], given[len(s.leaves) :]
        again = _vjp(lambda *a: s.pulled(a, cs), s.wrt, ls)[0]
        return again, [k.pulled(given, ws) for k in kinds]

    again, found = jax.tree.map(s.side.take, s.quickened(every)(kind.put(arrays), kind.put_like_results(weights)))
    p.same_gradients("forward", again, s.wrt, "when it is differentiated again")
    return [list(each) for each in found]


def _eager(p: Promises) -> None:
    """Without jit the same, also at a second point: nothing of a first call or trace is kept."""
    s = p.probe.subject
    cotangents, moved = _cotangents(p), _moved(p)
    for arrays, how, wanted in (
        (p.probe.arrays, "without jit", None),
        (moved, "without jit, at a second point", s.gradients(moved, p.probe.cotangents)),
    ):
        found = s.pulled(s.put(arrays), cotangents)
        p.same_gradients("eager", [s.side.take(g) for g in found], s.wrt, how, wanted)


def _subsets(p: Promises) -> Asked:
    """With fewer inputs perturbed, the others' symbolic zeros, each gradient is the same."""
    s = p.probe.subject
    if len(s.wrt) < 2:
        return
    found = yield lambda ls, cs, moved: [_vjp(s.flat, [i], ls)[1](cs)[0] for i in s.wrt]
    for i, g in zip(s.wrt, found, strict=True):
        p.same_gradients("argnums", [g], [i], f"with a gradient for {s.names[i]} only")


def _alone(p: Promises) -> Asked:
    """Each result alone, the others unused, adds up to all together."""
    s = p.probe.subject
    if len(p.values) < 2:
        return

    def one(k: int, ls: Leaves, cs: Leaves) -> Any:
        return _vjp(lambda *a: (s.flat(*a)[k],), s.wrt, ls)[1]((cs[k],))

    found = yield lambda ls, cs, moved: [one(k, ls, cs) for k in range(len(cs))]
    total = [functools.reduce(np.add, each) for each in zip(*found, strict=True)]
    p.same_gradients("each result alone", total, s.wrt, "as the sum over the results, each pulled back alone")


def _twofold(p: Promises, ls: Leaves, cs: Leaves, moved: Leaves) -> tuple[list[jax.Array], Leaves, list[int | None]]:
    """Two points in one: leaves, cotangents, and mapped axes."""
    wrt = p.probe.subject.wrt
    leaves = [jnp.stack([a, b]) if i in wrt else a for i, (a, b) in enumerate(zip(ls, moved, strict=True))]
    return leaves, tuple(jnp.stack([c, c]) for c in cs), [0 if i in wrt else None for i in range(len(ls))]


def _mapped(p: Promises) -> Asked:
    """jax.vmap of the function and of its pullback give the same at each point."""
    s = p.probe.subject

    def way(*given: Leaves) -> Any:
        leaves, cotangents, axes = _twofold(p, *given)
        return jax.vmap(s.flat, axes)(*leaves), jax.vmap(s.pulled, (axes, 0))(leaves, cotangents)

    results, found = yield way
    moved = _moved(p)
    beside = s.values(moved), s.gradients(moved, p.probe.cotangents)
    for k, how in enumerate(("under jax.vmap", "under jax.vmap, at the second of two points")):
        values, grads = (None, None) if k == 0 else beside
        p.same_values("vmap", [y[k] for y in results], how, values)
        p.same_gradients("vmap", [g[k] for g in found], s.wrt, how, grads)


def _checkpoint(p: Promises) -> Asked:
    """Recomputed in backward, the gradients are the same."""
    s = p.probe.subject
    found = yield lambda ls, cs, moved: _vjp(jax.checkpoint(s.flat), s.wrt, ls)[1](cs)
    p.same_gradients("checkpoint", found, s.wrt, "under jax.checkpoint")


def _scan(p: Promises) -> Asked:
    """As the body of a loop that is differentiated."""
    s = p.probe.subject

    def way(*given: Leaves) -> Any:
        leaves, cotangents, _ = _twofold(p, *given)

        def looped(*moving: jax.Array) -> Leaves:
            def body(carry: int, xs: Leaves) -> tuple[int, Leaves]:
                full = list(leaves)
                for i, x in zip(s.wrt, xs, strict=True):
                    full[i] = x
                return carry, s.flat(*full)

            return jax.lax.scan(body, 0, moving)[1]

        return jax.vjp(looped, *(leaves[i] for i in s.wrt))[1](cotangents)

    found = yield way
    p.same_gradients("scan", [g[0] for g in found], s.wrt, "inside jax.lax.scan")
    beside = s.gradients(_moved(p), p.probe.cotangents)
    p.same_gradients("scan", [g[1] for g in found], s.wrt, "in the second turn of jax.lax.scan", beside)


def _float0(p: Promises) -> Asked:
    """Integer inputs have cotangents of float0, and everybody else's stay the same."""
    s = p.probe.subject
    # A float that is a constant to the function has a cotangent like any other.
    whole = [i for i, leaf in enumerate(_leaves(p)) if i in s.wrt or jnp.issubdtype(leaf.dtype, jnp.integer)]
    if len(whole) == len(s.wrt):
        return
    dtypes: dict[int, str] = {}

    def way(ls: Leaves, cs: Leaves, moved: Leaves) -> list[jax.Array]:
        found = dict(zip(whole, _vjp(s.flat, whole, ls)[1](cs), strict=True))
        dtypes.update({i: g.dtype for i, g in found.items() if i not in s.wrt and g.dtype != jax.dtypes.float0})
        return [found[i] for i in whole if i in s.wrt]

    floats = yield way
    for i, dtype in dtypes.items():
        p.say("float0", WRONG, f"an integer input has a cotangent of {dtype}, wanted float0", s.names[i])
        return
    p.same_gradients("float0", floats, s.wrt, "when integer inputs are differentiated too")


def _unchanged(p: Promises, eagerly: bool) -> None:
    """A callback or an aliased kernel must not write into the inputs."""
    s = p.probe.subject
    given = [*_leaves(p), *_cotangents(p)]
    pulled = s.pulled if eagerly else s.compiled
    names = [*s.names, *(f"dy of {p.result(k)}" for k in range(len(p.values)))]
    before = [np.array(g) if jnp.issubdtype(g.dtype, jnp.number) else None for g in given]
    jax.block_until_ready(pulled(given[: len(s.names)], given[len(s.names) :]))
    said = [
        name
        for name, g, was in zip(names, given, before, strict=True)
        if was is not None and not np.array_equal(np.asarray(g), was)
    ]
    if said:
        p.say("memory unchanged", WRONG, f"forward or backward writes into {', '.join(said)}", said[0])
    else:
        p.say("memory unchanged", OK, "inputs and dy keep their bits", "", (), {"error": 0.0})


def empty(p: Promises) -> None:
    """With a zero-length first axis, where forward takes one, gradients hold no NaN."""
    s = p.probe.subject
    arrays = p.probe.arrays
    leading = next((len(arrays[i]) for i in s.wrt if arrays[i].ndim), 0)
    if not leading:
        return
    for which in (lambda k, a: k == s.wrt[0] and np.ndim(a), lambda k, a: np.ndim(a) and len(a) == leading):
        other = s.differently([a[:0] if which(k, a) else a for k, a in enumerate(arrays)], "an empty first axis")
        try:
            results = other.values(other.arrays)
        except Exception:
            continue
        if not all(np.isfinite(y).all() for y in results):
            p.note(f"{s.op}: not finite for an empty first axis")
            return
        try:
            found = other.gradients(other.arrays, [np.ones(y.shape) for y in results])
        except Exception as error:
            if refuses(error) or not _has_rules(p):
                # jax has no error for an index out of bounds, which a constant one is here.
                p.note(f"{s.op}: no gradient for an empty first axis ({first_line(error, 90)})")
            else:
                p.say("empty inputs", WRONG, f"forward takes an empty first axis, backward raises {first_line(error)}")
            return
        for i, g in zip(s.wrt, found, strict=True):
            if not np.isfinite(g).all():
                p.say("empty inputs", WRONG, "is not finite when the first axis is empty", s.names[i])
                return
        p.say("empty inputs", OK, "an empty first axis goes through", "", (), {"error": 0.0})
        return
    p.note(f"{s.op}: takes no empty first axis")


def ruled(p: Promises) -> bool:
    """Whether there is a hand-written rule: what only such a rule can break, at a program's cost, is left out."""
    s = p.probe.subject
    if s.untraced or s.trusted or by_hand(s):
        return True
    p.note(f"{s.op}: holds no rule but jax's own, so not tried without jit, at other shapes, nor in calls that cross")
    return False


def compiled(p: Promises) -> None:
    """Everything else here is under jit already; eager is held against it."""
