"""Forward mode on torch: dual tensors through the function, and through the `jvp` of its own that it may have."""

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch.autograd import forward_ad

from gradlab.autodiff.checker.contract.forward_mode import directions, held
from gradlab.autodiff.checker.core.comparison import Promises, first_line


def forward_mode(p: Promises) -> None:
    """J v by dual tensors; a note where a `jvp` that is declared raises, nothing where there is none."""
    s = p.probe.subject
    lines = directions(p, p.own_rng())

    def jvp(line: Mapping[int, np.ndarray], whole: bool = False) -> list[np.ndarray]:
        plain = s.put(p.probe.arrays)
        with warnings.catch_warnings(), torch.enable_grad(), forward_ad.dual_level():
            # The first of them brings torch's own scripts in, of which it warns.
            warnings.simplefilter("ignore")
            tangents = {i: s.side.put(d, s.side.dtype(plain[i]), plain[i]) for i, d in line.items()}
            # As when it is pulled back: a function may detach what needs no gradient.
            moving = [t.requires_grad_() if i in s.wrt else t for i, t in enumerate(plain)]
            given = [forward_ad.make_dual(t, tangents[i]) if i in line else t for i, t in enumerate(moving)]
            pairs = [forward_ad.unpack_dual(y) for y in s.flat(*given)]
            if whole and any(v is None for _, v in pairs):
                # All of these results have a pullback: an operation on the way lost the tangent and did not say so.
                raise NotImplementedError("a result has no tangent")
            return [s.side.take(torch.zeros_like(y) if v is None else v) for y, v in pairs]

    try:
        found = [jvp(line, whole=True) for line in lines]
    except Exception as error:
        if _declared(p):
            p.note(f"{s.op}: its jvp raises ({first_line(error, 90)})")
        return
    held(p, lines, found, jvp, "by forward mode")


def _declared(p: Promises) -> bool:
    """Whether a function on the way has a `jvp` of its own."""
    s = p.probe.subject
    with torch.enable_grad():
        results = s.flat(*(t.requires_grad_() if i in s.wrt else t for i, t in enumerate(s.put(p.probe.arrays))))
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
