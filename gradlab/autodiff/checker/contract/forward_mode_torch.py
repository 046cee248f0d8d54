"""Forward mode on torch: dual tensors through the function, and through its own `jvp` if it declares one."""

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch.autograd import forward_ad

from gradlab.autodiff.checker.contract.forward_mode import compare_jvps, directions
from gradlab.autodiff.checker.core.comparison import Comparison, first_line


def forward_mode(cmp: Comparison) -> None:
    """J v by dual tensors; a note if a declared `jvp` raises, nothing if there is none."""
    s = cmp.probe.subject
    lines = directions(cmp, cmp.own_rng())

    def jvp(line: Mapping[int, np.ndarray], strict: bool = False) -> list[np.ndarray]:
        plain = s.put(cmp.probe.arrays)
        with warnings.catch_warnings(), torch.enable_grad(), forward_ad.dual_level():
            # The first dual level imports torch's own scripts, which warn.
            warnings.simplefilter("ignore")
            tangents = {i: s.side.put(d, s.side.dtype(plain[i]), plain[i]) for i, d in line.items()}
            # As for the pullback: a function may detach what requires no gradient.
            moving = [t.requires_grad_() if i in s.wrt else t for i, t in enumerate(plain)]
            given = [forward_ad.make_dual(t, tangents[i]) if i in line else t for i, t in enumerate(moving)]
            pairs = [forward_ad.unpack_dual(y) for y in s.flat(*given)]
            if strict and any(v is None for _, v in pairs):
                # All these results have a pullback: some operation lost the tangent silently.
                raise NotImplementedError("a result has no tangent")
            return [s.side.take(torch.zeros_like(y) if v is None else v) for y, v in pairs]

    try:
        found = [jvp(line, strict=True) for line in lines]
    except Exception as error:
        if _declared(cmp):
            cmp.note(f"{s.op}: its jvp raises ({first_line(error, 90)})")
        return
    compare_jvps(cmp, lines, found, jvp, "by forward mode")


def _declared(cmp: Comparison) -> bool:
    """Whether a custom Function in the graph declares a `jvp`."""
    s = cmp.probe.subject
    with torch.enable_grad():
        results = s.flat(*(t.requires_grad_() if i in s.wrt else t for i, t in enumerate(s.put(cmp.probe.arrays))))
    nodes = [y.grad_fn for y in results]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        own = getattr(node, "_forward_cls", None)
        if own is not None and own.jvp is not torch.autograd.Function.jvp:
            return True
        nodes += [following for following, _ in node.next_functions]
    return False
