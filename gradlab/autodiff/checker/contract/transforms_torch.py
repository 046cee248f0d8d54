"""What a training loop does around a backward: per-sample gradients, autocast, accumulation in .grad."""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gradlab.autodiff.checker.contract.as_given_torch import pulled_back
from gradlab.autodiff.checker.contract.memory_guard_torch import hand_written
from gradlab.autodiff.checker.core.comparison import Comparison, first_line
from gradlab.autodiff.checker.core.finding import OK, WRONG
from gradlab.autodiff.checker.core.subject import UNITS
from gradlab.autodiff.checker.precision.rounding import Evaluation, compare_evaluations, perturb

Tensors = Sequence[torch.Tensor]


def per_sample(cmp: Comparison) -> None:
    """torch.func.vmap of the gradient gives what a loop over two samples gives: with all inputs mapped, and with one
    mapped and the others shared, as weights are."""
    s = cmp.probe.subject
    plain, cotangents = s.put(cmp.probe.arrays), s.put_like_results(cmp.probe.cotangents)
    if not hand_written(s.flat(*(t.detach().requires_grad_() if i in s.wrt else t for i, t in enumerate(plain)))):
        # All rules are torch's own; and the first such call imports torch's compiler, which takes two seconds.
        return
    other = [1.25 * t if i in s.wrt else t for i, t in enumerate(plain)]
    owns = [s.wrt, *([i] for i in s.wrt if len(s.wrt) > 1)]
    for own in owns:
        second = [b if i in own else a for i, (a, b) in enumerate(zip(plain, other, strict=True))]
        try:
            stacked = [
                torch.stack(pair) if i in own else pair[0] for i, pair in enumerate(zip(plain, second, strict=True))
            ]
            dims = tuple(0 if i in own else None for i in range(len(plain)))
            both = torch.func.vmap(_func_pullback(cmp), in_dims=(dims, None))(tuple(stacked), cotangents)
        except Exception as error:
            # The same text as for vmap of the forward, which usually raises the same.
            cmp.note(f"{s.op}: no vmap ({first_line(error, 70)})")
            return
        # The loop uses the backward that was compared with finite differences.
        at_second = [s.side.take(g) for g in s.pullback(second, cotangents)]
        names = "all inputs" if len(own) == len(s.wrt) else f"{s.names[own[0]]} alone"
        for k in range(2):
            how = f"under torch.func.vmap of the gradient, {names} mapped, sample {k}"
            found = [s.side.take(g[k]) for g in both]
            cmp.same_gradients("per-sample gradients", found, s.wrt, how, at_second if k else None)


def _func_pullback(cmp: Comparison) -> Any:
    """The pullback by torch.func."""
    s = cmp.probe.subject

    def pulled(leaves: Tensors, cotangents: Tensors) -> Tensors:
        def of(*moving: torch.Tensor) -> tuple[Any, ...]:
            full = list(leaves)
            for i, value in zip(s.wrt, moving, strict=True):
                full[i] = value
            return s.flat(*full)

        results, pull = torch.func.vjp(of, *(leaves[i] for i in s.wrt))[:2]
        found: Tensors = pull(tuple(c.to(y.dtype) for c, y in zip(cotangents, results, strict=True)))
        return found

    return pulled


def autocast(cmp: Comparison) -> None:
    """Under bfloat16 autocast of float32 inputs, gradients equal those in float64 within bfloat16 rounding.

    Forward runs under autocast and backward does not, as in a training loop. A difference that float32 alone causes, as
    where it changes the maximum of a window, is not attributed to autocast.
    """
    s, rng = cmp.probe.subject, cmp.own_rng()

    def evaluate(by: float, cast: bool = True) -> Evaluation:
        arrays = [
            np.asarray(a, np.float32).astype(np.float64) if i in s.wrt or i in s.constants else a
            for i, a in enumerate(perturb(cmp.probe.arrays, s.wrt, by, rng))
        ]
        leaves = [t.requires_grad_() if i in s.wrt else t for i, t in enumerate(s.put(arrays, "float32"))]
        with torch.enable_grad(), torch.autocast(leaves[s.wrt[0]].device.type, torch.bfloat16, enabled=cast):
            results = s.flat(*leaves)
        taken, found = pulled_back(cmp, results, [leaves[i] for i in s.wrt], by, rng)
        return Evaluation(arrays, taken, [s.side.take(y) for y in results], [s.side.take(g) for g in found])

    unit = max(UNITS["bfloat16"], cmp.probe.noise)
    found, without = replace(cmp, findings=[]), replace(cmp, findings=[], note=lambda text: None)
    compare_evaluations(found, "autocast", "under bfloat16 autocast", evaluate, unit)
    if any(f.verdict == WRONG for f in found.findings):
        compare_evaluations(without, "autocast", "in float32", functools.partial(evaluate, cast=False), unit)
    right = {f.input for f in without.findings if f.verdict == OK}
    for finding in found.findings:
        if finding.verdict == WRONG and finding.input not in right:
            cmp.note(f"{s.op}: the gradient of {finding.input} in float32 differs from float64 without autocast too")
        else:
            cmp.add(finding)


def accumulated(cmp: Comparison) -> None:
    """Backward accumulates into an existing .grad, twice, of the input's layout and of another."""
    s, rng = cmp.probe.subject, cmp.own_rng()
    cotangents = s.put_like_results(cmp.probe.cotangents)
    for how, layout in (("", torch.clone), ("of reversed axes ", _reversed)):
        leaves = [t.requires_grad_() if i in s.wrt else t for i, t in enumerate(s.put(cmp.probe.arrays))]
        before = [torch.from_numpy(rng.standard_normal(leaves[i].shape)).to(leaves[i]) for i in s.wrt]
        if how and all(t.ndim < 2 for t in before):
            return
        for i, g in zip(s.wrt, before, strict=True):
            leaves[i].grad = layout(g)
        for turn in (1, 2):
            with warnings.catch_warnings(), torch.enable_grad():
                # torch warns that another layout is slower.
                warnings.simplefilter("ignore")
                results = s.flat(*leaves)
                pairs = [(y, c) for y, c in zip(results, cotangents, strict=True) if y.requires_grad]
                torch.autograd.backward([y for y, _ in pairs], [c for _, c in pairs])
            wanted = [s.side.take(g) + turn * cmp.probe.gradients[i] for i, g in zip(s.wrt, before, strict=True)]
            found = [s.side.take(leaves[i].grad) for i in s.wrt]
            where = f"as .grad {how}that was there, after {turn} backward{'s' * (turn > 1)}"
            if not cmp.same_gradients(".grad adds up", found, s.wrt, where, wanted):
                return


def _reversed(t: torch.Tensor) -> torch.Tensor:
    """The same values with the axes reversed in memory."""
    axes = tuple(reversed(range(t.ndim)))
    return t.permute(axes).clone(memory_format=torch.contiguous_format).permute(axes)
