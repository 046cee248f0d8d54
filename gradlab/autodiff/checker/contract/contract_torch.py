"""What torch asks of a backward beyond its numbers: layouts, subsets, replays of one graph, memory left alone."""

import functools
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from gradlab.autodiff.checker.contract.forward_mode_torch import forward_mode
from gradlab.autodiff.checker.contract.given_torch import given
from gradlab.autodiff.checker.contract.guard_torch import Guarded, Watched, declares_vmap, once, used_ops
from gradlab.autodiff.checker.contract.transforms_torch import accumulated, autocast, per_sample
from gradlab.autodiff.checker.core.comparison import Promises, first_line, refuses
from gradlab.autodiff.checker.core.finding import OK, WRONG
from gradlab.autodiff.checker.core.subject import Subject
from gradlab.kernels.private.private_torch import negative_view

# Subsets of requires_grad: all of them for as many inputs, else each alone and all but each.
ALL_SUBSETS = 3


class _Run:
    """The subject's leaves as tensors that require gradients, and one forward."""

    def __init__(
        self, p: Promises, leaves: Sequence[torch.Tensor] | None = None, wrt: Sequence[int] | None = None
    ) -> None:
        self.p, subject = p, p.probe.subject
        given = subject.put(p.probe.arrays) if leaves is None else leaves
        self.wrt = list(subject.wrt if wrt is None else wrt)
        self.leaves = [t.detach().requires_grad_() if i in self.wrt else t.detach() for i, t in enumerate(given)]
        self.c = list(subject.put_like_results(p.probe.cotangents))
        with torch.enable_grad():
            self.results = subject.flat(*self.leaves)

    def grads(
        self, cotangents: Sequence[torch.Tensor | None] | None = None, keep: bool = True, **options: Any
    ) -> list[torch.Tensor | None]:
        """Gradients of `wrt`; results that need none, or whose cotangent is None, are left out."""
        cs = self.c if cotangents is None else cotangents
        pairs = [(y, c) for y, c in zip(self.results, cs, strict=True) if y.requires_grad and c is not None]
        if not pairs:
            return [None] * len(self.wrt)
        ys, given = zip(*pairs, strict=True)
        moving = [self.leaves[i] for i in self.wrt]
        return list(torch.autograd.grad(ys, moving, given, retain_graph=keep, allow_unused=True, **options))


def contract(p: Promises, at_size: bool = False) -> None:
    """Hold the function to all of it; a call that raises is a finding of its own.

    Args:
        at_size: only what depends on the size: memory, and a dy that lies in a larger buffer.
    """
    saved = _Saved()
    with saved:
        run = _Run(p)
    shared: dict[str, Callable[[Promises, _Run], None]] = {
        # First of all: it looks at what one backward changes.
        "memory unchanged": functools.partial(_unchanged, saved=saved),
        "forward": _forward,
        "strided dy": _strided,
    }
    own: dict[str, Callable[[Promises], None]] = {
        "as they were given": given,
        "no uninitialised or out-of-bounds writes": _poisoned,
    }
    if not at_size:
        shared |= {
            "repeated backward": _twice,
            "dy expanded": _expanded,
            "each result alone": _alone,
            "vmap of the backward": _batched,
        }
        own |= {
            "strided inputs": _inputs,
            "negative bit": _negated,
            "requires_grad": _subsets,
            "vmap": _mapped,
            "per-sample gradients": per_sample,
            "forward mode": forward_mode,
            ".grad adds up": accumulated,
            "autocast": autocast,
            "custom ops": _opcheck,
        }
    for check, promise in shared.items():
        _guarded(p, check, promise, p, run)
    for check, alone in own.items():
        _guarded(p, check, alone, p)


# What a caller's gradients meet in every training: a backward that raises there is at fault. What raises elsewhere
# refuses what it never promised.
_PROMISED = ("strided dy", "repeated backward", "requires_grad", "each result alone", ".grad adds up")


def _guarded(p: Promises, check: str, promise: Callable[..., None], *args: Any) -> None:
    try:
        promise(*args)
    except Exception as error:
        if check in _PROMISED:
            p.say(check, WRONG, f"raises {first_line(error)}")
        else:
            p.note(f"{p.probe.subject.op}: {check} is not looked at ({first_line(error, 90)})")


def _take(p: Promises, grads: Sequence[torch.Tensor | None]) -> list[np.ndarray | None]:
    return [None if g is None else p.probe.subject.side.take(g) for g in grads]


def _strided(p: Promises, run: _Run) -> None:
    """Cotangents that lie differently in memory: every second element of a larger buffer, NaN between."""
    strange = [_strange(c) for c in run.c]
    p.same_gradients("strided dy", _take(p, run.grads(strange)), run.wrt, "with dy strided, in a buffer of NaN")


def _expanded(p: Promises, run: _Run) -> None:
    """Cotangents of stride 0, along all axes or the first."""
    if all(c.ndim == 0 for c in run.c):
        return
    for how, repeat in (
        ("with dy expanded from one number (stride 0), as y.sum().backward() gives it", _one_number),
        ("with dy expanded along its first axis (stride 0)", _one_row),
    ):
        expanded = [repeat(c) for c in run.c]
        plain = run.grads([c.clone(memory_format=torch.contiguous_format) for c in expanded])
        wanted = [
            np.zeros(p.probe.arrays[i].shape) if g is None else p.probe.subject.side.take(g)
            for i, g in zip(run.wrt, plain, strict=True)
        ]
        p.same_gradients("strided dy", _take(p, run.grads(expanded)), run.wrt, how, wanted)


def _one_number(c: torch.Tensor) -> torch.Tensor:
    """One number with stride 0, and NaN for whoever reads on."""
    buffer = c.new_full((2 + c.numel(),), torch.nan)
    buffer[0] = 0.75
    return buffer[0].expand(c.shape)


def _one_row(c: torch.Tensor) -> torch.Tensor:
    """The first index for all others, and NaN for whoever reads on."""
    if c.ndim < 2 or not c.numel():
        return _one_number(c)
    buffer = c.new_full((1 + c.numel(),), torch.nan)
    row = buffer[: c[0].numel()].view(c[0].shape)
    row.copy_(c[0].detach())
    return row.expand(c.shape)


def _strange(t: torch.Tensor) -> torch.Tensor:
    """The same values with the axes reversed in memory, two elements apart, off the start of a buffer of NaN."""
    if not t.numel() or not t.ndim:
        return t
    buffer = t.new_full((*reversed([n + 1 for n in t.shape]), 2), torch.nan)
    view = buffer[tuple(slice(1, None) for _ in t.shape)][..., 1].permute(*reversed(range(t.ndim)))
    view.copy_(t.detach())
    return view


def _twice(p: Promises, run: _Run) -> None:
    """A second backward over one graph gives what the first gave."""
    for _ in range(2):
        again = run.grads()
    p.same_gradients("repeated backward", _take(p, again), run.wrt, "on another backward over the same graph")


class _Saved(torch.autograd.graph.saved_tensors_hooks):
    """Keeps hold of every tensor that forward saves."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []

        def pack(t: torch.Tensor) -> torch.Tensor:
            self.tensors.append(t.detach())
            return t

        super().__init__(pack, lambda t: t)


def _unchanged(p: Promises, run: _Run, saved: _Saved) -> None:
    """Inputs, cotangents, results and saved tensors have the bits they had: a kernel's store moves no version."""
    subject = p.probe.subject
    before = [t.detach().clone() for t in (*run.c, *run.results)]
    # Sparse tensors have no bits to compare.
    held = [t for t in saved.tensors if t.layout == torch.strided]
    kept = [t.clone() for t in held]
    run.grads()
    said = []
    for i, (name, leaf) in enumerate(zip(subject.names, run.leaves, strict=True)):
        if i in subject.wrt and not _same_bits(leaf, subject.put(p.probe.arrays)[i]):
            said.append(name)
    kinds = [f"dy of {p.result(k)}" for k in range(len(run.c))] + [p.result(k) for k in range(len(run.results))]
    said += [k for k, t, was in zip(kinds, (*run.c, *run.results), before, strict=True) if not _same_bits(t, was)]
    if any(not _same_bits(t, was) for t, was in zip(held, kept, strict=True)):
        said.append("a saved tensor")
    if said:
        p.say("memory unchanged", WRONG, f"forward or backward writes into {', '.join(said)}", said[0])
    else:
        p.say("memory unchanged", OK, "inputs, dy, results and saved tensors keep their bits", "", (), {"error": 0.0})


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and (torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all()))


def _alone(p: Promises, run: _Run) -> None:
    """Each result's cotangent alone, the others undefined, adds up to all together."""
    if len(run.results) < 2:
        return
    total = [np.zeros(p.probe.arrays[i].shape) for i in run.wrt]
    for k in range(len(run.results)):
        only = [c if j == k else None for j, c in enumerate(run.c)]
        for whole, g in zip(total, _take(p, run.grads(only)), strict=True):
            whole += 0.0 if g is None else g
    p.same_gradients("each result alone", total, run.wrt, "as the sum over the results, each pulled back alone")


def _batched(p: Promises, run: _Run) -> None:
    """The backward under vmap, where its operations have a rule for it."""
    other = [torch.from_numpy(p.rng.standard_normal(c.shape)).to(c) for c in run.c]
    stacked = [torch.stack(pair) for pair in zip(run.c, other, strict=True)]
    try:
        both = run.grads(stacked, is_grads_batched=True)
    except Exception as error:
        p.note(f"{p.probe.subject.op}: backward has no vmap ({first_line(error, 70)})")
        return
    beside = [
        np.zeros(p.probe.arrays[i].shape) if g is None else p.probe.subject.side.take(g)
        for i, g in zip(run.wrt, run.grads(other), strict=True)
    ]
    for k, wanted in enumerate((None, beside)):
        grads = _take(p, [None if g is None else g[k] for g in both])
        how = "with two cotangents at once (is_grads_batched)"
        p.same_gradients("vmap of the backward", grads, run.wrt, how, wanted)


def _forward(p: Promises, run: _Run) -> None:
    """Recorded or not, forward gives the same values."""
    p.same_values("forward", [p.probe.subject.side.take(y) for y in run.results], "when a gradient is recorded")


def recorded(
    p: Promises, kinds: Sequence[Subject], arrays: Sequence[np.ndarray], weights: Sequence[np.ndarray]
) -> list[list[np.ndarray]]:
    """The gradient that is differentiated again is the gradient.

    Returns:
        the pullbacks of `weights` by each of these kinds of pullback.
    """
    run = _Run(p)
    grads = run.grads([c.requires_grad_() for c in run.c], create_graph=True)
    p.same_gradients("forward", _take(p, grads), run.wrt, "when it is differentiated again")
    if once(grads):
        raise NotImplementedError("marked once_differentiable, its second-order terms are lost silently, or raise")
    return [kind.gradients(arrays, weights) for kind in kinds]


def _inputs(p: Promises) -> None:
    """Inputs that lie differently in memory give the same values and gradients."""
    subject = p.probe.subject
    plain = subject.put(p.probe.arrays)
    if all(plain[i].ndim == 0 for i in subject.wrt):
        return
    watched = Watched("as_strided")
    with watched:
        run = _Run(p, [_strange(t) if i in subject.wrt else t for i, t in enumerate(plain)])
    if watched.seen:
        p.note(f"{subject.op}: reads its inputs' memory as it lies (as_strided), so only as they were given")
        return
    how = "with inputs strided, in buffers of NaN"
    p.same_values("strided inputs", [subject.side.take(y) for y in run.results], how)
    p.same_gradients("strided inputs", _take(p, run.grads()), run.wrt, how)


def _negated(p: Promises) -> None:
    """Inputs and cotangents in memory of the other sign, as that of `z.conj().imag` is, are read as they are."""
    subject = p.probe.subject
    try:
        run = _Run(p, [_negative(t) if i in subject.wrt else t for i, t in enumerate(subject.put(p.probe.arrays))])
        gradients = run.grads([_negative(c) for c in run.c])
    except Exception as error:
        # Who refuses such a tensor, as `Tensor.numpy` does, reads no wrong sign.
        p.note(f"{subject.op}: does not take tensors whose negative bit is set ({first_line(error, 70)})")
        return
    how = "with inputs and dy whose negative bit is set"
    p.same_values("negative bit", [subject.side.take(y) for y in run.results], how)
    p.same_gradients("negative bit", _take(p, gradients), run.wrt, how)


def _negative(t: torch.Tensor) -> torch.Tensor:
    """The same values in memory of the other sign."""
    return negative_view(t.detach().neg())


def _subsets(p: Promises) -> None:
    """Whoever asks for fewer gradients gets the same ones."""
    wrt = p.probe.subject.wrt
    if len(wrt) < 2:
        return
    if len(wrt) <= ALL_SUBSETS:
        subsets = [s for n in range(1, len(wrt)) for s in itertools.combinations(wrt, n)]
    else:
        subsets = [*((i,) for i in wrt), *(tuple(j for j in wrt if j != i) for i in wrt)]
    for subset in subsets:
        names = ", ".join(p.probe.subject.names[i] for i in subset)
        run = _Run(p, wrt=subset)
        p.same_gradients("requires_grad", _take(p, run.grads(keep=False)), subset, f"with a gradient for {names} only")


def _poisoned(p: Promises) -> None:
    """New memory starts as NaN, between guards: what is never written shows, and so does what is written outside."""
    with Guarded() as guarded:
        run = _Run(p)
        grads = run.grads(keep=False)
    how = "when new memory starts as NaN: these were never written"
    check = "no uninitialised or out-of-bounds writes"
    p.same_values(check, [p.probe.subject.side.take(y) for y in run.results], how)
    p.same_gradients(check, _take(p, grads), run.wrt, how)
    outside = guarded.overrun()
    if outside:
        p.say(check, WRONG, f"writes outside its memory: {outside}")


def _mapped(p: Promises) -> None:
    """torch.func.vmap over every input gives what a loop gives, where a vmap is declared."""
    subject = p.probe.subject
    plain = subject.put(p.probe.arrays)
    other = [1.25 * t if i in subject.wrt else t for i, t in enumerate(plain)]
    dims = tuple(0 if i in subject.wrt else None for i in range(len(plain)))
    both = [torch.stack([a, b]) if i in subject.wrt else a for i, (a, b) in enumerate(zip(plain, other, strict=True))]
    try:
        mapped = torch.func.vmap(subject.flat, in_dims=dims)(*both)
    except Exception as error:
        if declares_vmap(_Run(p).results, error):
            p.say("vmap", WRONG, f"declares a vmap, which raises {first_line(error)}")
        else:
            p.note(f"{subject.op}: no vmap ({first_line(error, 70)})")
        return
    beside = [subject.side.take(y) for y in subject.flat(*other)]
    for k, wanted in enumerate((None, beside)):
        p.same_values("vmap", [subject.side.take(y[k]) for y in mapped], "under torch.func.vmap", wanted)


def _opcheck(p: Promises) -> None:
    """torch.library.opcheck on every custom op that forward and backward call."""
    for op, args, kwargs in used_ops(lambda: _Run(p).grads(keep=False)):
        with warnings.catch_warnings():
            # opcheck looks at .grad of what is no leaf, and torch warns of that.
            warnings.simplefilter("ignore")
            verdicts = torch.library.opcheck(op, args, kwargs, raise_exception=False)
        bad = [f"{test}: {' '.join(str(v).split())[:200]}" for test, v in verdicts.items() if v != "SUCCESS"]
        said = "; ".join(bad) or "opcheck passes"
        p.say("custom ops", WRONG if bad else OK, said, str(op), (), {} if bad else {"error": 0.0})


def empty(p: Promises) -> None:
    """With a zero-length first axis, where forward takes one, gradients come in the right shape and hold no NaN."""
    subject = p.probe.subject
    plain = subject.put(p.probe.arrays)
    leading = next((t.shape[0] for i, t in enumerate(plain) if i in subject.wrt and t.ndim), 0)
    if not leading:
        return
    for which in (lambda k, t: k == subject.wrt[0] and t.ndim, lambda k, t: t.ndim and t.shape[0] == leading):
        cut = [t[:0] if which(k, t) else t for k, t in enumerate(plain)]
        try:
            leaves = [t.detach().requires_grad_() if i in subject.wrt else t for i, t in enumerate(cut)]
            with torch.enable_grad():
                results = [y for y in subject.flat(*leaves) if y.requires_grad]
        except Exception:
            continue
        moving = [leaves[i] for i in subject.wrt]
        ones = [torch.ones_like(y) for y in results]
        try:
            grads = torch.autograd.grad(results, moving, ones, allow_unused=True) if results else []
        except Exception as error:
            if refuses(error):
                p.note(f"{subject.op}: no gradient for an empty first axis ({first_line(error, 90)})")
            else:
                p.say("empty inputs", WRONG, f"forward takes an empty first axis, backward raises {first_line(error)}")
            return
        for i, g in zip(subject.wrt, grads, strict=False):
            finite = g is None or all(bool(y.isfinite().all()) for y in results)
            if g is not None and finite and not g.isfinite().all():
                p.say("empty inputs", WRONG, "is not finite when the first axis is empty", subject.names[i])
                return
        p.say("empty inputs", OK, "an empty first axis goes through", "", (), {"error": 0.0})
        return
    p.note(f"{subject.op}: takes no empty first axis")


def ruled(p: Promises) -> bool:
    """Whether what only a hand-written rule can break is looked at: here that costs no more than the rest."""
    return True


def compiled(p: Promises) -> None:
    """torch.compile gives what eager gives."""
    subject = p.probe.subject
    check = "torch.compile"
    try:
        fn = torch.compile(subject.flat, backend="aot_eager")
        leaves = [t.requires_grad_() if i in subject.wrt else t for i, t in enumerate(subject.put(p.probe.arrays))]
        results = fn(*leaves)
        c = subject.put_like_results(p.probe.cotangents)
        pairs = [(y, d) for y, d in zip(results, c, strict=True) if y.requires_grad]
        moving = [leaves[i] for i in subject.wrt]
        grads = torch.autograd.grad([y for y, _ in pairs], moving, [d for _, d in pairs], allow_unused=True)
    except Exception as error:
        p.say(check, WRONG, f"raises {first_line(error)}")
        return
    p.same_values(check, [subject.side.take(y) for y in results], "under torch.compile")
    p.same_gradients(check, _take(p, grads), subject.wrt, "under torch.compile")
