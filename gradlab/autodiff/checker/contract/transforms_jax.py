"""Per-sample gradients and forward mode on jax; their programs are compiled with those of the contract."""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.autodiff.checker.contract.forward_mode import compare_jvps, directions
from gradlab.autodiff.checker.core.comparison import Comparison, first_line, refuses

Leaves = tuple[Any, ...]
Comparing = Generator[Callable[[Leaves, Leaves, Leaves], Any], Any, None]


def per_sample(cmp: Comparison) -> Comparing:
    """jax.vmap of the gradient with one input mapped and the others shared, as weights are: for the first input, and
    for the last."""
    s = cmp.probe.subject
    if len(s.wrt) < 2:
        return
    owns, raised = (s.wrt[0], s.wrt[-1]), []

    def program(ls: Leaves, cs: Leaves, moved: Leaves) -> Any:
        found = []
        for own in owns:
            leaves = [jnp.stack([a, b]) if i == own else a for i, (a, b) in enumerate(zip(ls, moved, strict=True))]
            axes = [0 if i == own else None for i in range(len(ls))]
            try:
                found.append(jax.vmap(s.pullback, (axes, None))(leaves, cs))
            except Exception as error:
                raised.append(error)
                return None
        return found

    found = yield program
    if found is None:
        # The same text as for vmap over all inputs, which usually raises the same.
        cmp.note(f"{s.op}: vmap is not checked ({first_line(raised[0], 90)})")
        return
    for own, grads in zip(owns, found, strict=True):
        second = [a * 1.25 if i == own else a for i, a in enumerate(cmp.probe.arrays)]
        at_second = s.gradients(second, cmp.probe.cotangents)
        for k in range(2):
            how = f"under jax.vmap of the gradient, {s.names[own]} alone mapped, sample {k}"
            cmp.same_gradients("per-sample gradients", [g[k] for g in grads], s.wrt, how, at_second if k else None)


def forward_mode(cmp: Comparison) -> Comparing:
    """J v by jax.jvp; no finding if a custom_vjp forbids it."""
    s = cmp.probe.subject
    lines = directions(cmp, cmp.own_rng())
    tangents = [_tangents(cmp, line) for line in lines]
    if _has_forward_mode(cmp):
        found = yield lambda ls, cs, moved: [_jvp(s.flat, s.wrt, ls, each) for each in tangents]
        _compare(cmp, lines, found, "by jax.jvp")


def _has_forward_mode(cmp: Comparison) -> bool:
    """Whether jax.jvp works; a note if something other than a custom_vjp prevents it."""
    s = cmp.probe.subject
    tangents = _tangents(cmp, {})
    try:
        program = str(jax.make_jaxpr(lambda *ls: _jvp(s.flat, s.wrt, ls, tangents))(*s.put(cmp.probe.arrays)))
    except Exception as error:
        _note_unless_custom_vjp(cmp, "no jax.jvp", error)
        return False
    # A custom_vjp raises only when it is compiled.
    return "custom_lin" not in program


def _note_unless_custom_vjp(cmp: Comparison, what: str, error: Exception) -> None:
    if "custom_vjp" not in str(error) and not refuses(error):
        cmp.note(f"{cmp.probe.subject.op}: {what} ({first_line(error, 90)})")


def forward_over_reverse(cmp: Comparison) -> None:
    """J v of the pullback, as jax.hessian computes it; `cmp` compares the pullback as a function."""
    s = cmp.probe.subject
    lines = directions(cmp, cmp.own_rng())
    try:
        program = s.jitted(lambda ls, each: [_jvp(s.flat, s.wrt, ls, t) for t in each])
        found = program(s.put(cmp.probe.arrays), [_tangents(cmp, line) for line in lines])
    except Exception as error:
        _note_unless_custom_vjp(cmp, "no jax.jvp of the gradient", error)
        return
    _compare(cmp, lines, [[s.side.take(t) for t in each] for each in found], "by jax.jvp of the gradient")


def _compare(cmp: Comparison, lines: Sequence[Mapping[int, np.ndarray]], found: Any, how: str) -> None:
    s = cmp.probe.subject

    # Compiled: eagerly a custom_vjp raises even where its derivative is not used.
    program = s.jitted(lambda ls, tangents: _jvp(s.flat, s.wrt, ls, tangents))

    def jvp(line: Mapping[int, np.ndarray]) -> list[np.ndarray]:
        return [s.side.take(t) for t in program(s.put(cmp.probe.arrays), _tangents(cmp, line))]

    compare_jvps(cmp, lines, found, jvp, how)


def _tangents(cmp: Comparison, line: Mapping[int, np.ndarray]) -> list[jax.Array]:
    """The tangents of the differentiated inputs; zero for inputs that the direction does not move."""
    s = cmp.probe.subject
    arrays = (line.get(i, np.zeros_like(cmp.probe.arrays[i])) for i in s.wrt)
    return [s.side.put(a, s.working_dtype) for a in arrays]


def _jvp(fn: Callable[..., Leaves], wrt: Sequence[int], leaves: Leaves, tangents: Sequence[jax.Array]) -> Leaves:
    def of(*moving: jax.Array) -> Leaves:
        full = list(leaves)
        for i, value in zip(wrt, moving, strict=True):
            full[i] = value
        return fn(*full)

    derivative: Leaves = jax.jvp(of, [leaves[i] for i in wrt], tangents)[1]
    return derivative
