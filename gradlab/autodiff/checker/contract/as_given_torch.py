"""The tensors exactly as given: their dtypes, strides and shared memory, which the rest of the check replaces."""

from collections.abc import Sequence

import numpy as np
import torch

from gradlab.autodiff.checker.core.comparison import Comparison, first_line, refuses
from gradlab.autodiff.checker.core.complex_arrays import PARTS, is_complex
from gradlab.autodiff.checker.core.finding import WRONG
from gradlab.autodiff.checker.core.subject import FLOATS, UNITS
from gradlab.autodiff.checker.precision.rounding import Evaluation, compare_evaluations, perturb
from gradlab.kernels.private.private_torch import negative_view

CHECK = "as they were given"


def given(cmp: Comparison) -> None:
    """Compare values and gradients at the given tensors, if they have several dtypes or are not contiguous.

    Contiguous tensors of one dtype are covered by the rest of the check and by the precision part.
    """
    s = cmp.probe.subject
    how = _unusual(s.given, _names(cmp))
    if not how:
        return
    evaluate = _Evaluate(cmp)
    try:
        first = evaluate(0.0)
    except _Backward as error:
        if refuses(error.cause):
            cmp.note(f"{s.op}: no gradient {how} ({first_line(error.cause, 90)})")
        else:
            cmp.record(CHECK, WRONG, f"backward raises {first_line(error.cause)}, {how}")
        return
    except Exception as error:
        cmp.note(f"{s.op}: does not run {how} ({first_line(error, 90)})")
        return
    lowest = max(evaluate.unit, s.noise)
    if lowest <= 2 * UNITS["float64"]:
        cmp.same_values(CHECK, first.values, how)
        cmp.same_gradients(CHECK, list(first.grads), s.wrt, how)
    else:
        compare_evaluations(cmp, CHECK, how, evaluate, max(lowest, cmp.probe.noise), evaluate.half)


class _Backward(Exception):
    """Backward raised after forward ran."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class _Evaluate:
    """Evaluates the function and its backward on copies of the given tensors in the same memory layout.

    Attributes:
        unit: rounding unit of the lowest precision among inputs and results; half: whether one of them is float16.
    """

    def __init__(self, cmp: Comparison) -> None:
        self.cmp, self.unit, self.half = cmp, 0.0, False
        self.rng = cmp.own_rng()

    def __call__(self, by: float) -> Evaluation:
        s, rng = self.cmp.probe.subject, self.rng
        memory = _Memory(s.given, by, rng)
        moving, arrays = [], []
        leaves = list(memory.tensors)
        for k, places in enumerate(_places(self.cmp)):
            arrays += [s.side.take(part) for part in (s.side.parts(leaves[k]) if len(places) > 1 else (leaves[k],))]
            if any(i in s.wrt for i in places):
                leaves[k] = leaves[k].requires_grad_()
                moving.append(k)
        with torch.enable_grad():
            results = s.as_given(*leaves)
        try:
            taken, found = pulled_back(self.cmp, results, [leaves[k] for k in moving], by, rng)
        except Exception as error:
            raise _Backward(error) from error
        grads = {}
        for k, g in zip(moving, found, strict=True):
            places = _places(self.cmp)[k]
            parts = s.side.parts(g) if len(places) > 1 else (g,)
            grads.update({i: s.side.take(part) for i, part in zip(places, parts, strict=True)})
        dtypes = {s.dtypes[i] for i in s.wrt} | {s.side.dtype(y) for y in results}
        self.unit, self.half = max(UNITS[d] for d in dtypes), "float16" in dtypes
        return Evaluation(arrays, taken, [s.side.take(y) for y in results], [grads[i] for i in s.wrt])


def pulled_back(
    cmp: Comparison,
    results: Sequence[torch.Tensor],
    moving: Sequence[torch.Tensor],
    by: float,
    rng: np.random.Generator,
) -> tuple[list[np.ndarray], Sequence[torch.Tensor]]:
    """The probe's dy, perturbed by that relative amount and rounded to each result's dtype, and its gradients."""
    side = cmp.probe.subject.side
    cotangents = perturb(cmp.probe.cotangents, range(len(results)), by, rng)
    dys = [side.put(c, side.dtype(y), y) for c, y in zip(cotangents, results, strict=True)]
    pairs = [(y, dy) for y, dy in zip(results, dys, strict=True) if y.requires_grad]
    found = torch.autograd.grad([y for y, _ in pairs], moving, [dy for _, dy in pairs], materialize_grads=True)
    return [side.take(dy) for dy in dys], found


class _Memory:
    """Copies of tensors that preserve shared memory, strides, offsets, and conjugate and negative bits."""

    def __init__(self, tensors: Sequence[torch.Tensor], by: float, rng: np.random.Generator) -> None:
        spans: dict[tuple[int, torch.dtype], list[int]] = {}
        for t in filter(_plain, tensors):
            start = int(t.storage_offset())
            span = spans.setdefault(_where(t), [start, 0])
            span[:] = [min(span[0], start), max(span[1], start + _extent(t))]
        buffers: dict[tuple[int, torch.dtype], torch.Tensor] = {}
        self.tensors: list[torch.Tensor] = []
        for t in tensors:
            if not _plain(t):
                self.tensors.append(t.detach())
                continue
            where = _where(t)
            start, stop = spans[where]
            if where not in buffers:
                buffers[where] = _moved(_as_stored(t).as_strided((stop - start,), (1,), start), by, rng)
            copy = buffers[where].as_strided(t.shape, t.stride(), t.storage_offset() - start)
            copy = torch.conj(copy) if t.is_conj() else copy
            self.tensors.append(negative_view(copy) if t.is_neg() else copy)


def _plain(t: torch.Tensor) -> bool:
    """Whether a tensor has dense memory to copy: not sparse, nested or empty."""
    return t.layout == torch.strided and not t.is_nested and t.numel() > 0 and not t._is_zerotensor()


def _where(t: torch.Tensor) -> tuple[int, torch.dtype]:
    return t.untyped_storage().data_ptr(), t.dtype


def _as_stored(t: torch.Tensor) -> torch.Tensor:
    """The stored values of a tensor, without its conjugate and negative bits."""
    t = t.detach().conj() if t.is_conj() else t.detach()
    return negative_view(t) if t.is_neg() else t


def _extent(t: torch.Tensor) -> int:
    return 1 + sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True))


def _moved(memory: torch.Tensor, by: float, rng: np.random.Generator) -> torch.Tensor:
    """A copy of memory with each float perturbed by a relative amount."""
    memory = memory.clone()
    if by and (memory.is_floating_point() or memory.is_complex()):
        parts = torch.view_as_real(memory) if memory.is_complex() else memory
        signs = torch.from_numpy(1 + by * rng.choice([-1.0, 1.0], parts.shape)).to(parts.device)
        parts.copy_(parts.double() * signs)
    return memory


def _places(cmp: Comparison) -> list[tuple[int, ...]]:
    """For each given tensor its indices among the leaves: two for a complex one."""
    found: list[tuple[int, ...]] = []
    for t in cmp.probe.subject.given:
        at = sum(map(len, found))
        found.append((at, at + 1) if is_complex(cmp.probe.subject.side, t) else (at,))
    return found


def _names(cmp: Comparison) -> list[str]:
    names = cmp.probe.subject.names
    return [names[i[0]] if len(i) == 1 else names[i[0]].removesuffix(".real") for i in _places(cmp)]


def _unusual(tensors: Sequence[torch.Tensor], names: Sequence[str]) -> str:
    """What is unusual about the float tensors, in words; empty if nothing is."""
    kinds = {n: str(t.dtype).removeprefix("torch.") for n, t in zip(names, tensors, strict=True)}
    floats = {n: PARTS.get(kind, kind) for n, kind in kinds.items() if kind in (*FLOATS, *PARTS)}
    unusual = [f"{n} {kinds[n]}" for n in floats] if len(set(floats.values())) > 1 else []
    for n, t in zip(names, tensors, strict=True):
        if n not in floats or not _plain(t):
            continue
        if not t.is_contiguous():
            unusual.append(f"{n} of strides {list(t.stride())}")
        if t.is_conj() or t.is_neg():
            unusual.append(f"{n} lazily {'conjugated' if t.is_conj() else 'negated'}")
    return f"with {', '.join(unusual)}, as given" if unusual else ""
