"""Gradients of each sample and forward mode on jax: ways to numbers that are compiled with those of the contract."""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.autodiff.checker.contract.forward_mode import directions, held
from gradlab.autodiff.checker.core.comparison import Promises, first_line, refuses

Leaves = tuple[Any, ...]
Asked = Generator[Callable[[Leaves, Leaves, Leaves], Any], Any, None]


def per_sample(p: Promises) -> Asked:
    """jax.vmap of the gradient with one input of each sample's own, and the others shared, as weights are: the first
    input, and the last."""
    s = p.probe.subject
    if len(s.wrt) < 2:
        return
    owns, raised = (s.wrt[0], s.wrt[-1]), []

    def way(ls: Leaves, cs: Leaves, moved: Leaves) -> Any:
        found = []
        for own in owns:
            leaves = [jnp.stack([a, b]) if i == own else a for i, (a, b) in enumerate(zip(ls, moved, strict=True))]
            axes = [0 if i == own else None for i in range(len(ls))]
            try:
                found.append(jax.vmap(s.pulled, (axes, None))(leaves, cs))
            except Exception as error:
                raised.append(error)
                return None
        return found

    found = yield way
    if found is None:
        # In the words of the vmap of all inputs, which usually raises the same.
        p.note(f"{s.op}: vmap is not looked at ({first_line(raised[0], 90)})")
        return
    for own, grads in zip(owns, found, strict=True):
        second = [a * 1.25 if i == own else a for i, a in enumerate(p.probe.arrays)]
        beside = s.gradients(second, p.probe.cotangents)
        for k in range(2):
            how = f"under jax.vmap of the gradient, {s.names[own]} alone mapped, sample {k}"
            p.same_gradients("per-sample gradients", [g[k] for g in grads], s.wrt, how, beside if k else None)


def forward_mode(p: Promises) -> Asked:
    """J v by jax.jvp; nothing is said where a custom_vjp forbids it."""
    s = p.probe.subject
    lines = directions(p, p.own_rng())
    tangents = [_tangents(p, line) for line in lines]
    if _has_forward_mode(p):
        found = yield lambda ls, cs, moved: [_jvp(s.flat, s.wrt, ls, each) for each in tangents]
        _hold(p, lines, found, "by jax.jvp")


def _has_forward_mode(p: Promises) -> bool:
    """Whether jax.jvp can be taken; a note where something else than a custom_vjp keeps it from that."""
    s = p.probe.subject
    tangents = _tangents(p, {})
    try:
        program = str(jax.make_jaxpr(lambda *ls: _jvp(s.flat, s.wrt, ls, tangents))(*s.put(p.probe.arrays)))
    except Exception as error:
        _say_unless_a_custom_vjp(p, "no jax.jvp", error)
        return False
    # A custom_vjp says so when it is compiled, and not before.
    return "custom_lin" not in program


def _say_unless_a_custom_vjp(p: Promises, what: str, error: Exception) -> None:
    if "custom_vjp" not in str(error) and not refuses(error):
        p.note(f"{p.probe.subject.op}: {what} ({first_line(error, 90)})")


def forward_over_reverse(p: Promises) -> None:
    """The pullback's own J v, as jax.hessian takes it: `p` is of the pullback as a function."""
    s = p.probe.subject
    lines = directions(p, p.own_rng())
    try:
        program = s.quickened(lambda ls, each: [_jvp(s.flat, s.wrt, ls, t) for t in each])
        found = program(s.put(p.probe.arrays), [_tangents(p, line) for line in lines])
    except Exception as error:
        _say_unless_a_custom_vjp(p, "no jax.jvp of the gradient", error)
        return
    _hold(p, lines, [[s.side.take(t) for t in each] for each in found], "by jax.jvp of the gradient")


def _hold(p: Promises, lines: Sequence[Mapping[int, np.ndarray]], found: Any, how: str) -> None:
    s = p.probe.subject

    # Compiled: without it a custom_vjp raises also where nobody uses its derivative.
    program = s.quickened(lambda ls, tangents: _jvp(s.flat, s.wrt, ls, tangents))

    def jvp(line: Mapping[int, np.ndarray]) -> list[np.ndarray]:
        return [s.side.take(t) for t in program(s.put(p.probe.arrays), _tangents(p, line))]

    held(p, lines, found, jvp, how)


def _tangents(p: Promises, line: Mapping[int, np.ndarray]) -> list[jax.Array]:
    """The directions of the inputs that are differentiated; zeros where the line does not move one."""
    s = p.probe.subject
    arrays = (line.get(i, np.zeros_like(p.probe.arrays[i])) for i in s.wrt)
    return [s.side.put(a, s.working) for a in arrays]


def _jvp(fn: Callable[..., Leaves], wrt: Sequence[int], leaves: Leaves, tangents: Sequence[jax.Array]) -> Leaves:
    def of(*moving: jax.Array) -> Leaves:
        full = list(leaves)
        for i, value in zip(wrt, moving, strict=True):
            full[i] = value
        return fn(*full)

    derivative: Leaves = jax.jvp(of, [leaves[i] for i in wrt], tangents)[1]
    return derivative
