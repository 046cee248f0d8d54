"""What a training loop does around a backward: gradients of each sample, autocast, gradients that add up."""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gradlab.autodiff.checker.contract.given_torch import pulled_back
from gradlab.autodiff.checker.contract.guard_torch import by_hand
from gradlab.autodiff.checker.core.comparison import Promises, first_line
from gradlab.autodiff.checker.core.finding import OK, WRONG
from gradlab.autodiff.checker.core.subject import UNITS
from gradlab.autodiff.checker.precision.rounding import Worked, held, shaken

Tensors = Sequence[torch.Tensor]


def per_sample(p: Promises) -> None:
    """torch.func.vmap of the gradient gives what a loop over two samples gives: with all inputs of each sample's own,
    and with one of its own and the others shared, as weights are."""
    s = p.probe.subject
    plain, cotangents = s.put(p.probe.arrays), s.put_like_results(p.probe.cotangents)
    if not by_hand(s.flat(*(t.detach().requires_grad_() if i in s.wrt else t for i, t in enumerate(plain)))):
        # These rules are torch's own; and for the first such call it imports its compiler, which takes two seconds.
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
            both = torch.func.vmap(_pulled(p), in_dims=(dims, None))(tuple(stacked), cotangents)
        except Exception as error:
            # The words that the vmap of forward has, which usually raises the same.
            p.note(f"{s.op}: no vmap ({first_line(error, 70)})")
            return
        # The loop is of the backward that differences were held to.
        beside = [s.side.take(g) for g in s.pulled(second, cotangents)]
        names = "all inputs" if len(own) == len(s.wrt) else f"{s.names[own[0]]} alone"
        for k in range(2):
            how = f"under torch.func.vmap of the gradient, {names} mapped, sample {k}"
            found = [s.side.take(g[k]) for g in both]
            p.same_gradients("per-sample gradients", found, s.wrt, how, beside if k else None)


def _pulled(p: Promises) -> Any:
    """The pullback by torch.func."""
    s = p.probe.subject

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


def autocast(p: Promises) -> None:
    """Under bfloat16 autocast of float32 inputs, as the CPU has it, gradients are float64's within bfloat16's rounding.

    Forward runs under it and backward does not, as in a training loop. What float32 alone makes another, as where it
    decides which elements a window holds, is no fault of autocast's.
    """
    s, rng = p.probe.subject, p.own_rng()

    def work(by: float, cast: bool = True) -> Worked:
        arrays = [
            np.asarray(a, np.float32).astype(np.float64) if i in s.wrt or i in s.carried else a
            for i, a in enumerate(shaken(p.probe.arrays, s.wrt, by, rng))
        ]
        leaves = [t.requires_grad_() if i in s.wrt else t for i, t in enumerate(s.put(arrays, "float32"))]
        with torch.enable_grad(), torch.autocast(leaves[s.wrt[0]].device.type, torch.bfloat16, enabled=cast):
            results = s.flat(*leaves)
        taken, found = pulled_back(p, results, [leaves[i] for i in s.wrt], by, rng)
        return Worked(arrays, taken, [s.side.take(y) for y in results], [s.side.take(g) for g in found])

    unit = max(UNITS["bfloat16"], p.probe.noise)
    found, without = replace(p, findings=[]), replace(p, findings=[], note=lambda text: None)
    held(found, "autocast", "under bfloat16 autocast", work, unit)
    if any(f.verdict == WRONG for f in found.findings):
        held(without, "autocast", "in float32", functools.partial(work, cast=False), unit)
    right = {f.input for f in without.findings if f.verdict == OK}
    for finding in found.findings:
        if finding.verdict == WRONG and finding.input not in right:
            p.note(
                f"{s.op}: the gradient of {finding.input} in float32 is another than in float64, without autocast too"
            )
        else:
            p.add(finding)


def accumulated(p: Promises) -> None:
    """Backward adds to .grad what it gives otherwise, twice: to one that is there, of the input's layout or another."""
    s, rng = p.probe.subject, p.own_rng()
    cotangents = s.put_like_results(p.probe.cotangents)
    for how, layout in (("", torch.clone), ("of reversed axes ", _reversed)):
        leaves = [t.requires_grad_() if i in s.wrt else t for i, t in enumerate(s.put(p.probe.arrays))]
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
            wanted = [s.side.take(g) + turn * p.probe.gradients[i] for i, g in zip(s.wrt, before, strict=True)]
            found = [s.side.take(leaves[i].grad) for i in s.wrt]
            where = f"as .grad {how}that was there, after {turn} backward{'s' * (turn > 1)}"
            if not p.same_gradients(".grad adds up", found, s.wrt, where, wanted):
                return


def _reversed(t: torch.Tensor) -> torch.Tensor:
    """The same values with the axes in memory the other way round."""
    axes = tuple(reversed(range(t.ndim)))
    return t.permute(axes).clone(memory_format=torch.contiguous_format).permute(axes)
