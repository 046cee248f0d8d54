"""Requirements of jax on a custom_vjp beyond its numbers: equal under every transform, zeros in every form."""

import contextlib
import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.autodiff.checker.contract.as_given_jax import given
from gradlab.autodiff.checker.contract.eager_jax import hand_written, too_many
from gradlab.autodiff.checker.contract.transforms_jax import forward_mode, per_sample
from gradlab.autodiff.checker.core.comparison import Comparison, first_line, refuses
from gradlab.autodiff.checker.core.finding import OK, WRONG
from gradlab.autodiff.checker.core.subject import CheckSubject

Leaves = tuple[Any, ...]
# A function of (leaves, cotangents, leaves of a second point).
Program = Callable[[Leaves, Leaves, Leaves], Any]
# Yields its program, is sent the program's results, and compares them.
Comparing = Generator[Program, Any, None]


def contract(cmp: Comparison, at_size: bool = False) -> None:
    """Check all of them; a call that raises is a finding of its own.

    Args:
        at_size: only what depends on the size: memory.
    """
    s = cmp.probe.subject
    if not at_size and not s.without_jit:
        _compiled(
            cmp,
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
        _run_guarded(cmp, "as they were given", functools.partial(given, cmp))
    eagerly = not at_size and (s.without_jit or _runs_eagerly(cmp))
    if eagerly:
        _run_guarded(cmp, "eager", functools.partial(_eager, cmp))
    _run_guarded(cmp, "memory unchanged", functools.partial(_unchanged, cmp, eagerly))


# Situations that every gradient meets.
_REQUIRED = ("forward", "eager", "argnums", "each result alone", "float0")
# Transforms that a custom_vjp supports by construction, unless its rules run on the host, which jax refuses.
_BY_CONSTRUCTION = ("vmap", "checkpoint", "scan")


def _has_rules(cmp: Comparison) -> bool:
    """Whether the function has a custom_vjp, or a vmap of its own."""
    program = str(jax.make_jaxpr(cmp.probe.subject.flat)(*_leaves(cmp)))
    return "custom_vjp_call" in program or "custom_vmap_call" in program


def _run_guarded(cmp: Comparison, check: str, run: Callable[[], None]) -> None:
    try:
        run()
    except Exception as error:
        if check in _REQUIRED or (check in _BY_CONSTRUCTION and not refuses(error) and _has_rules(cmp)):
            cmp.record(check, WRONG, f"raises {first_line(error)}")
        else:
            cmp.note(f"{cmp.probe.subject.op}: {check} is not checked ({first_line(error, 90)})")


def _compiled(cmp: Comparison, comparisons: Mapping[str, Callable[[Comparison], Comparing]]) -> None:
    """Run comparisons that yield a program and are sent its results; all programs are compiled as one, which is faster
    than compiling each."""
    generators: dict[str, Comparing] = {}
    programs: dict[str, Program] = {}
    for check, comparison in comparisons.items():
        generator = comparison(cmp)
        program = next(generator, None)
        if program is not None:
            generators[check], programs[check] = generator, program
    found = _results(cmp, programs)
    for check, generator in generators.items():
        _run_guarded(cmp, check, functools.partial(_resume, generator, found[check]))


def _resume(generator: Comparing, found: Any) -> None:
    """Send a comparison the results of its program, or raise the exception that the program raised."""
    if isinstance(found, Exception):
        raise found
    with contextlib.suppress(StopIteration):
        generator.send(found)


def _results(cmp: Comparison, programs: Mapping[str, Program]) -> dict[str, Any]:
    """By name the results of each program as NumPy arrays, or the exception it raises."""
    s = cmp.probe.subject
    given = (_leaves(cmp), _cotangents(cmp), s.put(_moved(cmp)))
    raised: dict[str, Any] = {}

    def every(*given: Leaves) -> dict[str, Any]:
        found = {}
        for check, program in programs.items():
            try:
                found[check] = program(*given)
            except Exception as error:
                raised[check] = error
        return found

    try:
        found = s.jitted(every)(*given)
    except Exception as error:
        if len(programs) == 1:
            return dict.fromkeys(programs, error)
        # One of them does not compile or run: run each on its own to find which.
        return {check: _results(cmp, {check: program})[check] for check, program in programs.items()}
    return jax.tree.map(s.side.take, found) | raised


def _runs_eagerly(cmp: Comparison) -> bool:
    """Whether to run the function without jit, where every operation is compiled alone; a note if that is expensive."""
    s = cmp.probe.subject
    if not has_rule(cmp):
        return False
    many = too_many(s, _cotangents(cmp))
    if many:
        cmp.note(f"{s.op}: not run without jit: {many} operations would be compiled one by one")
    return not many


def _leaves(cmp: Comparison) -> Leaves:
    return cmp.probe.subject.put(cmp.probe.arrays)


def _cotangents(cmp: Comparison) -> Leaves:
    return cmp.probe.subject.put_like_results(cmp.probe.cotangents)


def _moved(cmp: Comparison) -> list[np.ndarray]:
    """A second point."""
    return [a * 1.25 if i in cmp.probe.subject.wrt else a for i, a in enumerate(cmp.probe.arrays)]


def _vjp(fn: Callable[..., Leaves], wrt: Sequence[int], leaves: Leaves) -> tuple[Any, Callable[[Any], Any]]:
    """Results and pullback of `fn` for the leaves `wrt`, the others constant."""

    def of(*moving: jax.Array) -> Leaves:
        full = list(leaves)
        for i, value in zip(wrt, moving, strict=True):
            full[i] = value
        return fn(*full)

    return jax.vjp(of, *(leaves[i] for i in wrt))


def _forward(cmp: Comparison) -> Comparing:
    """Inside jax.vjp the forward gives the same values."""
    s = cmp.probe.subject
    results = yield lambda ls, cs, moved: _vjp(s.flat, s.wrt, ls)[0]
    cmp.same_values("forward", results, "when a gradient is recorded")


def differentiated_again(
    cmp: Comparison, kinds: Sequence[CheckSubject], arrays: Sequence[np.ndarray], weights: Sequence[np.ndarray]
) -> list[list[np.ndarray]]:
    """Compare the gradient inside a second differentiation, which another forward rule computes, with the gradient.

    Returns:
        the pullbacks of `weights` by each of these kinds of pullback, all by one program.
    """
    s, kind = cmp.probe.subject, kinds[0]

    def every(given: Leaves, ws: Leaves) -> tuple[Any, list[Any]]:
        ls, cs = given[: len(s.leaves)], given[len(s.leaves) :]
        again = _vjp(lambda *a: s.pullback(a, cs), s.wrt, ls)[0]
        return again, [k.pullback(given, ws) for k in kinds]

    again, found = jax.tree.map(s.side.take, s.jitted(every)(kind.put(arrays), kind.put_like_results(weights)))
    cmp.same_gradients("forward", again, s.wrt, "when it is differentiated again")
    return [list(each) for each in found]


def _eager(cmp: Comparison) -> None:
    """Without jit the same, also at a second point: no state of a first call or trace remains."""
    s = cmp.probe.subject
    cotangents, moved = _cotangents(cmp), _moved(cmp)
    for arrays, how, wanted in (
        (cmp.probe.arrays, "without jit", None),
        (moved, "without jit, at a second point", s.gradients(moved, cmp.probe.cotangents)),
    ):
        found = s.pullback(s.put(arrays), cotangents)
        cmp.same_gradients("eager", [s.side.take(g) for g in found], s.wrt, how, wanted)


def _subsets(cmp: Comparison) -> Comparing:
    """Each gradient is the same if it is the only one requested."""
    s = cmp.probe.subject
    if len(s.wrt) < 2:
        return
    found = yield lambda ls, cs, moved: [_vjp(s.flat, [i], ls)[1](cs)[0] for i in s.wrt]
    for i, g in zip(s.wrt, found, strict=True):
        cmp.same_gradients("argnums", [g], [i], f"with a gradient for {s.names[i]} only")


def _alone(cmp: Comparison) -> Comparing:
    """The pullbacks of single results add up to the pullback of all of them."""
    s = cmp.probe.subject
    if len(cmp.values) < 2:
        return

    def one(k: int, ls: Leaves, cs: Leaves) -> Any:
        return _vjp(lambda *a: (s.flat(*a)[k],), s.wrt, ls)[1]((cs[k],))

    found = yield lambda ls, cs, moved: [one(k, ls, cs) for k in range(len(cs))]
    total = [functools.reduce(np.add, each) for each in zip(*found, strict=True)]
    cmp.same_gradients("each result alone", total, s.wrt, "as the sum of the pullbacks of single results")


def _stacked(
    cmp: Comparison, ls: Leaves, cs: Leaves, moved: Leaves
) -> tuple[list[jax.Array], Leaves, list[int | None]]:
    """Leaves and cotangents of two points stacked, and the mapped axes."""
    wrt = cmp.probe.subject.wrt
    leaves = [jnp.stack([a, b]) if i in wrt else a for i, (a, b) in enumerate(zip(ls, moved, strict=True))]
    return leaves, tuple(jnp.stack([c, c]) for c in cs), [0 if i in wrt else None for i in range(len(ls))]


def _mapped(cmp: Comparison) -> Comparing:
    """jax.vmap of the function and of its pullback give the same at each point."""
    s = cmp.probe.subject

    def program(*given: Leaves) -> Any:
        leaves, cotangents, axes = _stacked(cmp, *given)
        return jax.vmap(s.flat, axes)(*leaves), jax.vmap(s.pullback, (axes, 0))(leaves, cotangents)

    results, found = yield program
    moved = _moved(cmp)
    at_second = s.values(moved), s.gradients(moved, cmp.probe.cotangents)
    for k, how in enumerate(("under jax.vmap", "under jax.vmap, at the second of two points")):
        values, grads = (None, None) if k == 0 else at_second
        cmp.same_values("vmap", [y[k] for y in results], how, values)
        cmp.same_gradients("vmap", [g[k] for g in found], s.wrt, how, grads)


def _checkpoint(cmp: Comparison) -> Comparing:
    """The gradients are the same if jax.checkpoint recomputes the forward in the backward."""
    s = cmp.probe.subject
    found = yield lambda ls, cs, moved: _vjp(jax.checkpoint(s.flat), s.wrt, ls)[1](cs)
    cmp.same_gradients("checkpoint", found, s.wrt, "under jax.checkpoint")


def _scan(cmp: Comparison) -> Comparing:
    """The gradients are the same in the body of a differentiated jax.lax.scan."""
    s = cmp.probe.subject

    def program(*given: Leaves) -> Any:
        leaves, cotangents, _ = _stacked(cmp, *given)

        def looped(*moving: jax.Array) -> Leaves:
            def body(carry: int, xs: Leaves) -> tuple[int, Leaves]:
                full = list(leaves)
                for i, x in zip(s.wrt, xs, strict=True):
                    full[i] = x
                return carry, s.flat(*full)

            return jax.lax.scan(body, 0, moving)[1]

        return jax.vjp(looped, *(leaves[i] for i in s.wrt))[1](cotangents)

    found = yield program
    cmp.same_gradients("scan", [g[0] for g in found], s.wrt, "inside jax.lax.scan")
    at_second = s.gradients(_moved(cmp), cmp.probe.cotangents)
    cmp.same_gradients("scan", [g[1] for g in found], s.wrt, "in the second iteration of jax.lax.scan", at_second)


def _float0(cmp: Comparison) -> Comparing:
    """Integer inputs have float0 cotangents, and all other gradients stay the same."""
    s = cmp.probe.subject
    # A float that is a constant has a cotangent like any other.
    with_integers = [i for i, leaf in enumerate(_leaves(cmp)) if i in s.wrt or jnp.issubdtype(leaf.dtype, jnp.integer)]
    if len(with_integers) == len(s.wrt):
        return
    dtypes: dict[int, str] = {}

    def program(ls: Leaves, cs: Leaves, moved: Leaves) -> list[jax.Array]:
        found = dict(zip(with_integers, _vjp(s.flat, with_integers, ls)[1](cs), strict=True))
        dtypes.update({i: g.dtype for i, g in found.items() if i not in s.wrt and g.dtype != jax.dtypes.float0})
        return [found[i] for i in with_integers if i in s.wrt]

    floats = yield program
    for i, dtype in dtypes.items():
        cmp.record("float0", WRONG, f"an integer input has a cotangent of {dtype}, wanted float0", s.names[i])
        return
    cmp.same_gradients("float0", floats, s.wrt, "when integer inputs are differentiated too")


def _unchanged(cmp: Comparison, eagerly: bool) -> None:
    """A callback or an aliased kernel must not write to the inputs."""
    s = cmp.probe.subject
    given = [*_leaves(cmp), *_cotangents(cmp)]
    pullback = s.pullback if eagerly else s.compiled
    names = [*s.names, *(f"dy of {cmp.result(k)}" for k in range(len(cmp.values)))]
    before = [np.array(g) if jnp.issubdtype(g.dtype, jnp.number) else None for g in given]
    jax.block_until_ready(pullback(given[: len(s.names)], given[len(s.names) :]))
    changed = [
        name
        for name, g, was in zip(names, given, before, strict=True)
        if was is not None and not np.array_equal(np.asarray(g), was)
    ]
    if changed:
        cmp.record("memory unchanged", WRONG, f"forward or backward writes to {', '.join(changed)}", changed[0])
    else:
        cmp.record("memory unchanged", OK, "inputs and dy are unchanged", "", (), {"error": 0.0})


def empty(cmp: Comparison) -> None:
    """With an empty first axis, if forward accepts one, gradients hold no NaN."""
    s = cmp.probe.subject
    arrays = cmp.probe.arrays
    leading = next((len(arrays[i]) for i in s.wrt if arrays[i].ndim), 0)
    if not leading:
        return
    for which in (lambda k, a: k == s.wrt[0] and np.ndim(a), lambda k, a: np.ndim(a) and len(a) == leading):
        other = s.with_arrays([a[:0] if which(k, a) else a for k, a in enumerate(arrays)], "an empty first axis")
        try:
            results = other.values(other.arrays)
        except Exception:
            continue
        if not all(np.isfinite(y).all() for y in results):
            cmp.note(f"{s.op}: not finite for an empty first axis")
            return
        try:
            found = other.gradients(other.arrays, [np.ones(y.shape) for y in results])
        except Exception as error:
            if refuses(error) or not _has_rules(cmp):
                # jax raises no error for an index out of bounds, which a constant index is here.
                cmp.note(f"{s.op}: no gradient for an empty first axis ({first_line(error, 90)})")
            else:
                cmp.record(
                    "empty inputs", WRONG, f"forward accepts an empty first axis, backward raises {first_line(error)}"
                )
            return
        for i, g in zip(s.wrt, found, strict=True):
            if not np.isfinite(g).all():
                cmp.record("empty inputs", WRONG, "is not finite when the first axis is empty", s.names[i])
                return
        cmp.record("empty inputs", OK, "an empty first axis is accepted", "", (), {"error": 0.0})
        return
    cmp.note(f"{s.op}: does not accept an empty first axis")


def has_rule(cmp: Comparison) -> bool:
    """Whether the function has a hand-written rule; if not, expensive comparisons that only a rule can fail are
    skipped."""
    s = cmp.probe.subject
    if s.without_jit or s.trusted or hand_written(s):
        return True
    cmp.note(f"{s.op}: has no custom rule, so it is not checked without jit, at other shapes, or in interleaved calls")
    return False


def compiled(cmp: Comparison) -> None:
    """Nothing to do: everything else here runs under jit, and is compared with eager."""
