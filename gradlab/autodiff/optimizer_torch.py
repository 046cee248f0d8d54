"""What the optimizers for torch have in common: a step of all parameters of one dtype and device in one launch."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gradlab.autodiff.arguments import FLOATS, dtype_name, refuse
from gradlab.autodiff.arguments_torch import DEVICES


class OneLaunch(torch.optim.Optimizer):
    """An optimizer of torch with another `step`; stands before torch's class among the bases.

    A subclass says which options it refuses, and for one parameter which tensors and scalars its kernel takes.
    """

    # Options that are not done by hand; a state_dict may bring them, so they are looked at each step.
    _refused: tuple[str, ...] = ()

    def _step_all(self, columns: Sequence[list[torch.Tensor]], scalars: list[float]) -> None:
        """Launch over the columns: for each place of a `_row`, the tensors of all parameters; then their scalars."""
        raise NotImplementedError

    def _row(self, group: dict[str, Any], p: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], list[float]]:
        """The tensors of one parameter's step, the gradient second and written in every other place; its scalars."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what the closure returns.

        Raises:
            TypeError: a parameter or gradient that is sparse, complex or of another dtype than the lab's.
            ValueError: a parameter on a device without kernels, an option refused.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Everything is looked at before anything is written: an error leaves no half-made step behind.
        self._refuse_options()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    _refuse_tensors(type(self).__name__, p, self.state.get(p, {}))
        batches: dict[tuple, tuple[list, list]] = defaultdict(lambda: ([], []))
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                tensors, values = self._row(group, p)
                rows, scalars = batches[p.device, p.dtype]
                rows.append(tensors)
                scalars += values
        for rows, scalars in batches.values():
            self._launch(rows, scalars)
        return loss

    def _refuse_options(self) -> None:
        """Raise a ValueError for an option that is not done by hand."""
        for group in self.param_groups:
            for option in self._refused:
                if group.get(option):
                    refuse(type(self).__name__, option, repr(group[option]), "False or None")

    def _launch(self, rows: list[tuple[torch.Tensor, ...]], scalars: list[float]) -> None:
        """Over tensors that lie alike in memory; one that does not takes part as a copy and is written back."""
        alike = [tuple(_lie_like(_dense(row[0]), t) for t in row) for row in rows]
        self._step_all([list(column) for column in zip(*alike, strict=True)], scalars)
        for given, used in zip(rows, alike, strict=True):
            for i in range(len(given)):
                if i != 1 and used[i] is not given[i]:
                    given[i].copy_(used[i])


def _refuse_tensors(name: str, p: torch.Tensor, state: dict[str, Any]) -> None:
    assert p.grad is not None
    for what, t in (("a parameter", p), ("a gradient", p.grad)):
        if t.layout != torch.strided:
            refuse(name, f"layout of {what}", t.layout, "torch.strided", TypeError)
        if dtype_name(t) not in FLOATS:
            refuse(name, f"dtype of {what}", dtype_name(t), f"one of {', '.join(FLOATS)}", TypeError)
        if t.device.type not in DEVICES:
            refuse(name, f"device of {what}", t.device, " or ".join(DEVICES))
    # The kernel walks over addresses: what is shorter or narrower than its parameter must not get there.
    for what, t in (("a gradient", p.grad), *state.items()):
        if not isinstance(t, torch.Tensor) or what == "step":
            continue
        if t.shape != p.shape:
            refuse(name, f"shape of {what}", list(t.shape), f"{list(p.shape)} like its parameter")
        if t.dtype != p.dtype:
            refuse(name, f"dtype of {what}", dtype_name(t), f"{dtype_name(p)} like its parameter", TypeError)
        if t.device != p.device:
            refuse(name, f"device of {what}", t.device, f"{p.device} like its parameter")


def _dense(t: torch.Tensor) -> torch.Tensor:
    """The tensor itself when its elements fill their memory without gaps or overlaps, else a contiguous copy."""
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(t.stride(), t.shape, strict=True) if n != 1):
        if stride != expected:
            return t.contiguous()
        expected *= size
    return t


def _lie_like(model: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """`t`, or a copy of it that lies as the model does; a place that the kernel does not touch has no elements."""
    if not t.numel():
        return t
    strides = zip(t.stride(), model.stride(), t.shape, strict=True)
    return t if all(a == b or n == 1 for a, b, n in strides) else torch.empty_like(model).copy_(t)
