"""Requirements of torch on a backward beyond its numbers: layouts, subsets, repeated backward, memory unchanged."""

import functools
import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from gradlab.autodiff.checker.contract.as_given_torch import given
from gradlab.autodiff.checker.contract.forward_mode_torch import forward_mode
from gradlab.autodiff.checker.contract.layouts_torch import expanded_number, expanded_row, negated_view, strided_copy
from gradlab.autodiff.checker.contract.memory_guard_torch import (
    CallWatcher,
    MemoryGuards,
    declares_vmap,
    marked_once_differentiable,
    used_ops,
)
from gradlab.autodiff.checker.contract.transforms_torch import accumulated, autocast, per_sample
from gradlab.autodiff.checker.core.comparison import Comparison, first_line, refuses
from gradlab.autodiff.checker.core.finding import OK, WRONG
from gradlab.autodiff.checker.core.subject import CheckSubject

# Up to this many inputs all subsets of requires_grad are tried, else each input alone and all but each.
ALL_SUBSETS = 3


class _Recorded:
    """The subject's leaves as tensors that require gradients, and one forward."""

    def __init__(
        self, cmp: Comparison, leaves: Sequence[torch.Tensor] | None = None, wrt: Sequence[int] | None = None
    ) -> None:
        self.cmp, subject = cmp, cmp.probe.subject
        given = subject.put(cmp.probe.arrays) if leaves is None else leaves
        self.wrt = list(subject.wrt if wrt is None else wrt)
        self.leaves = [t.detach().requires_grad_() if i in self.wrt else t.detach() for i, t in enumerate(given)]
        self.c = list(subject.put_like_results(cmp.probe.cotangents))
        with torch.enable_grad():
            self.results = subject.flat(*self.leaves)

    def grads(
        self, cotangents: Sequence[torch.Tensor | None] | None = None, keep: bool = True, **options: Any
    ) -> list[torch.Tensor | None]:
        """Gradients for `wrt`; results that require none, or whose cotangent is None, are left out."""
        cs = self.c if cotangents is None else cotangents
        pairs = [(y, c) for y, c in zip(self.results, cs, strict=True) if y.requires_grad and c is not None]
        if not pairs:
            return [None] * len(self.wrt)
        ys, given = zip(*pairs, strict=True)
        moving = [self.leaves[i] for i in self.wrt]
        return list(torch.autograd.grad(ys, moving, given, retain_graph=keep, allow_unused=True, **options))


def contract(cmp: Comparison, at_size: bool = False) -> None:
    """Check all of them; a call that raises is a finding of its own.

    Args:
        at_size: only what depends on the size: memory, and a dy that is a view of a larger buffer.
    """
    saved = _Saved()
    with saved:
        run = _Recorded(cmp)
    shared: dict[str, Callable[[Comparison, _Recorded], None]] = {
        # First, as it inspects what a single backward changes.
        "memory unchanged": functools.partial(_unchanged, saved=saved),
        "forward": _forward,
        "strided dy": _strided,
    }
    own: dict[str, Callable[[Comparison], None]] = {
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
    for check, comparison in shared.items():
        _run_guarded(cmp, check, comparison, cmp, run)
    for check, alone in own.items():
        _run_guarded(cmp, check, alone, cmp)


# Situations of every training loop: a backward that raises there is wrong. Elsewhere it may refuse.
_REQUIRED = ("strided dy", "repeated backward", "requires_grad", "each result alone", ".grad adds up")


def _run_guarded(cmp: Comparison, check: str, comparison: Callable[..., None], *args: Any) -> None:
    try:
        comparison(*args)
    except Exception as error:
        if check in _REQUIRED:
            cmp.record(check, WRONG, f"raises {first_line(error)}")
        else:
            cmp.note(f"{cmp.probe.subject.op}: {check} is not checked ({first_line(error, 90)})")


def _take(cmp: Comparison, grads: Sequence[torch.Tensor | None]) -> list[np.ndarray | None]:
    return [None if g is None else cmp.probe.subject.side.take(g) for g in grads]


def _strided(cmp: Comparison, run: _Recorded) -> None:
    """Cotangents of another memory layout: every second element of a larger buffer, NaN in between."""
    strided = [strided_copy(c) for c in run.c]
    cmp.same_gradients("strided dy", _take(cmp, run.grads(strided)), run.wrt, "with dy strided, in a buffer of NaN")


def _expanded(cmp: Comparison, run: _Recorded) -> None:
    """Cotangents of stride 0, along all axes or the first."""
    if all(c.ndim == 0 for c in run.c):
        return
    for how, repeat in (
        ("with dy expanded from one number (stride 0), as y.sum().backward() gives it", expanded_number),
        ("with dy expanded along its first axis (stride 0)", expanded_row),
    ):
        expanded = [repeat(c) for c in run.c]
        plain = run.grads([c.clone(memory_format=torch.contiguous_format) for c in expanded])
        wanted = [
            np.zeros(cmp.probe.arrays[i].shape) if g is None else cmp.probe.subject.side.take(g)
            for i, g in zip(run.wrt, plain, strict=True)
        ]
        cmp.same_gradients("strided dy", _take(cmp, run.grads(expanded)), run.wrt, how, wanted)


def _twice(cmp: Comparison, run: _Recorded) -> None:
    """Another backward over the same graph gives the same gradients."""
    for _ in range(2):
        again = run.grads()
    cmp.same_gradients("repeated backward", _take(cmp, again), run.wrt, "on another backward over the same graph")


class _Saved(torch.autograd.graph.saved_tensors_hooks):
    """Records every tensor that forward saves for backward."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []

        def pack(t: torch.Tensor) -> torch.Tensor:
            self.tensors.append(t.detach())
            return t

        super().__init__(pack, lambda t: t)


def _unchanged(cmp: Comparison, run: _Recorded, saved: _Saved) -> None:
    """Inputs, cotangents, results and saved tensors are unchanged: a kernel's store bumps no version counter."""
    subject = cmp.probe.subject
    before = [t.detach().clone() for t in (*run.c, *run.results)]
    # Sparse tensors have no bits to compare.
    strided_saved = [t for t in saved.tensors if t.layout == torch.strided]
    copies = [t.clone() for t in strided_saved]
    run.grads()
    changed = []
    for i, (name, leaf) in enumerate(zip(subject.names, run.leaves, strict=True)):
        if i in subject.wrt and not _same_bits(leaf, subject.put(cmp.probe.arrays)[i]):
            changed.append(name)
    kinds = [f"dy of {cmp.result(k)}" for k in range(len(run.c))] + [cmp.result(k) for k in range(len(run.results))]
    changed += [k for k, t, was in zip(kinds, (*run.c, *run.results), before, strict=True) if not _same_bits(t, was)]
    if any(not _same_bits(t, was) for t, was in zip(strided_saved, copies, strict=True)):
        changed.append("a saved tensor")
    if changed:
        cmp.record("memory unchanged", WRONG, f"forward or backward writes to {', '.join(changed)}", changed[0])
    else:
        cmp.record(
            "memory unchanged", OK, "inputs, dy, results and saved tensors are unchanged", "", (), {"error": 0.0}
        )


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and (torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all()))


def _alone(cmp: Comparison, run: _Recorded) -> None:
    """The pullbacks of single results, other cotangents undefined, add up to the pullback of all."""
    if len(run.results) < 2:
        return
    total = [np.zeros(cmp.probe.arrays[i].shape) for i in run.wrt]
    for k in range(len(run.results)):
        only = [c if j == k else None for j, c in enumerate(run.c)]
        for partial_sum, g in zip(total, _take(cmp, run.grads(only)), strict=True):
            partial_sum += 0.0 if g is None else g
    cmp.same_gradients("each result alone", total, run.wrt, "as the sum of the pullbacks of single results")


def _batched(cmp: Comparison, run: _Recorded) -> None:
    """The backward under vmap, if its operations have a batching rule."""
    other = [torch.from_numpy(cmp.rng.standard_normal(c.shape)).to(c) for c in run.c]
    stacked = [torch.stack(pair) for pair in zip(run.c, other, strict=True)]
    try:
        both = run.grads(stacked, is_grads_batched=True)
    except Exception as error:
        cmp.note(f"{cmp.probe.subject.op}: backward has no vmap ({first_line(error, 70)})")
        return
    of_other = [
        np.zeros(cmp.probe.arrays[i].shape) if g is None else cmp.probe.subject.side.take(g)
        for i, g in zip(run.wrt, run.grads(other), strict=True)
    ]
    for k, wanted in enumerate((None, of_other)):
        grads = _take(cmp, [None if g is None else g[k] for g in both])
        how = "with two cotangents at once (is_grads_batched)"
        cmp.same_gradients("vmap of the backward", grads, run.wrt, how, wanted)


def _forward(cmp: Comparison, run: _Recorded) -> None:
    """Forward gives the same values whether or not a gradient is recorded."""
    cmp.same_values("forward", [cmp.probe.subject.side.take(y) for y in run.results], "when a gradient is recorded")


def differentiated_again(
    cmp: Comparison, kinds: Sequence[CheckSubject], arrays: Sequence[np.ndarray], weights: Sequence[np.ndarray]
) -> list[list[np.ndarray]]:
    """Compare the gradient computed with create_graph with the gradient.

    Returns:
        the pullbacks of `weights` by each of these kinds of pullback.
    """
    run = _Recorded(cmp)
    grads = run.grads([c.requires_grad_() for c in run.c], create_graph=True)
    cmp.same_gradients("forward", _take(cmp, grads), run.wrt, "when it is differentiated again")
    if marked_once_differentiable(grads):
        raise NotImplementedError("marked once_differentiable: second-order terms are lost silently, or raise")
    return [kind.gradients(arrays, weights) for kind in kinds]


def _inputs(cmp: Comparison) -> None:
    """Inputs of another memory layout give the same values and gradients."""
    subject = cmp.probe.subject
    plain = subject.put(cmp.probe.arrays)
    if all(plain[i].ndim == 0 for i in subject.wrt):
        return
    watched = CallWatcher("as_strided")
    with watched:
        run = _Recorded(cmp, [strided_copy(t) if i in subject.wrt else t for i, t in enumerate(plain)])
    if watched.seen:
        cmp.note(f"{subject.op}: reads its inputs' memory by as_strided, so strided inputs are not tried")
        return
    how = "with inputs strided, in buffers of NaN"
    cmp.same_values("strided inputs", [subject.side.take(y) for y in run.results], how)
    cmp.same_gradients("strided inputs", _take(cmp, run.grads()), run.wrt, how)


def _negated(cmp: Comparison) -> None:
    """Inputs and cotangents with the negative bit set, as in `z.conj().imag`, are read with the right sign."""
    subject = cmp.probe.subject
    try:
        run = _Recorded(
            cmp, [negated_view(t) if i in subject.wrt else t for i, t in enumerate(subject.put(cmp.probe.arrays))]
        )
        gradients = run.grads([negated_view(c) for c in run.c])
    except Exception as error:
        # A function that refuses such a tensor, as `Tensor.numpy` does, is right too.
        cmp.note(f"{subject.op}: does not accept tensors with the negative bit set ({first_line(error, 70)})")
        return
    how = "with inputs and dy that have the negative bit set"
    cmp.same_values("negative bit", [subject.side.take(y) for y in run.results], how)
    cmp.same_gradients("negative bit", _take(cmp, gradients), run.wrt, how)


def _subsets(cmp: Comparison) -> None:
    """A subset of the gradients is the same as in all of them."""
    wrt = cmp.probe.subject.wrt
    if len(wrt) < 2:
        return
    if len(wrt) <= ALL_SUBSETS:
        subsets = [s for n in range(1, len(wrt)) for s in itertools.combinations(wrt, n)]
    else:
        subsets = [*((i,) for i in wrt), *(tuple(j for j in wrt if j != i) for i in wrt)]
    for subset in subsets:
        names = ", ".join(cmp.probe.subject.names[i] for i in subset)
        run = _Recorded(cmp, wrt=subset)
        cmp.same_gradients(
            "requires_grad", _take(cmp, run.grads(keep=False)), subset, f"with a gradient for {names} only"
        )


def _poisoned(cmp: Comparison) -> None:
    """Fill new memory with NaN between guards: unwritten elements and out-of-bounds writes show."""
    with MemoryGuards() as guarded:
        run = _Recorded(cmp)
        grads = run.grads(keep=False)
    how = "when new memory starts as NaN: these elements were never written"
    check = "no uninitialised or out-of-bounds writes"
    cmp.same_values(check, [cmp.probe.subject.side.take(y) for y in run.results], how)
    cmp.same_gradients(check, _take(cmp, grads), run.wrt, how)
    outside = guarded.overrun()
    if outside:
        cmp.record(check, WRONG, f"writes out of bounds of {outside}")


def _mapped(cmp: Comparison) -> None:
    """torch.func.vmap over every input gives what a loop gives, if the function has a vmap."""
    subject = cmp.probe.subject
    plain = subject.put(cmp.probe.arrays)
    other = [1.25 * t if i in subject.wrt else t for i, t in enumerate(plain)]
    dims = tuple(0 if i in subject.wrt else None for i in range(len(plain)))
    both = [torch.stack([a, b]) if i in subject.wrt else a for i, (a, b) in enumerate(zip(plain, other, strict=True))]
    try:
        mapped = torch.func.vmap(subject.flat, in_dims=dims)(*both)
    except Exception as error:
        if declares_vmap(_Recorded(cmp).results, error):
            cmp.record("vmap", WRONG, f"declares a vmap, which raises {first_line(error)}")
        else:
            cmp.note(f"{subject.op}: no vmap ({first_line(error, 70)})")
        return
    of_other = [subject.side.take(y) for y in subject.flat(*other)]
    for k, wanted in enumerate((None, of_other)):
        cmp.same_values("vmap", [subject.side.take(y[k]) for y in mapped], "under torch.func.vmap", wanted)


def _opcheck(cmp: Comparison) -> None:
    """Run torch.library.opcheck on every custom op that forward and backward call."""
    for op, args, kwargs in used_ops(lambda: _Recorded(cmp).grads(keep=False)):
        with warnings.catch_warnings():
            # opcheck reads .grad of non-leaf tensors, which torch warns about.
            warnings.simplefilter("ignore")
            verdicts = torch.library.opcheck(op, args, kwargs, raise_exception=False)
        bad = [f"{test}: {' '.join(str(v).split())[:200]}" for test, v in verdicts.items() if v != "SUCCESS"]
        detail = "; ".join(bad) or "opcheck passes"
        cmp.record("custom ops", WRONG if bad else OK, detail, str(op), (), {} if bad else {"error": 0.0})


def empty(cmp: Comparison) -> None:
    """With an empty first axis, if forward accepts one, gradients have the right shape and hold no NaN."""
    subject = cmp.probe.subject
    plain = subject.put(cmp.probe.arrays)
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
                cmp.note(f"{subject.op}: no gradient for an empty first axis ({first_line(error, 90)})")
            else:
                cmp.record(
                    "empty inputs", WRONG, f"forward accepts an empty first axis, backward raises {first_line(error)}"
                )
            return
        for i, g in zip(subject.wrt, grads, strict=False):
            finite = g is None or all(bool(y.isfinite().all()) for y in results)
            if g is not None and finite and not g.isfinite().all():
                cmp.record("empty inputs", WRONG, "is not finite when the first axis is empty", subject.names[i])
                return
        cmp.record("empty inputs", OK, "an empty first axis is accepted", "", (), {"error": 0.0})
        return
    cmp.note(f"{subject.op}: does not accept an empty first axis")


def has_rule(cmp: Comparison) -> bool:
    """Whether to check what only a hand-written rule can fail: always, as on torch it is cheap."""
    return True


def compiled(cmp: Comparison) -> None:
    """torch.compile gives what eager gives."""
    subject = cmp.probe.subject
    check = "torch.compile"
    try:
        fn = torch.compile(subject.flat, backend="aot_eager")
        leaves = [t.requires_grad_() if i in subject.wrt else t for i, t in enumerate(subject.put(cmp.probe.arrays))]
        results = fn(*leaves)
        c = subject.put_like_results(cmp.probe.cotangents)
        pairs = [(y, d) for y, d in zip(results, c, strict=True) if y.requires_grad]
        moving = [leaves[i] for i in subject.wrt]
        grads = torch.autograd.grad([y for y, _ in pairs], moving, [d for _, d in pairs], allow_unused=True)
    except Exception as error:
        cmp.record(check, WRONG, f"raises {first_line(error)}")
        return
    cmp.same_values(check, [subject.side.take(y) for y in results], "under torch.compile")
    cmp.same_gradients(check, _take(cmp, grads), subject.wrt, "under torch.compile")
