"""A step of an optimizer, cached for the next one: the same tensors with new gradients and new scalars.

Checking thousands of parameters one by one takes the host longer than the kernel. Where nothing but gradients,
addresses and numbers can have changed since the last step, all tensors of a role are checked together.
"""

from collections.abc import Sequence
from operator import attrgetter, is_
from typing import Any

import torch

from gradlab.kernels.optimizers.multi_tensor_triton import dense
from gradlab.kernels.runtime import memory_triton as memory

_dtype, _shape, _on_cpu = attrgetter("dtype"), attrgetter("shape"), attrgetter("is_cpu")


class CachedStep:
    """One launch's parameters, and for each other role where its tensors come from.

    Attributes:
        on_device: the rows' further words.
    """

    def __init__(
        self,
        params: list[torch.Tensor],
        columns: Sequence[list[Any]],
        names: Sequence[str | None],
        options: tuple,
        on_device: list[tuple],
    ) -> None:
        self._params, self._options, self.on_device = params, options, on_device
        # For each role after parameter and gradient: a name in the state, or tensors without elements.
        self._sources = [column if name is None else name for column, name in zip(columns[2:], names, strict=True)]
        self._dtypes = [column[0].dtype for column in columns]
        self._strides, self._shapes = [p.stride() for p in params], [p.shape for p in params]

    def columns(self, params: list[torch.Tensor], states: dict, options: tuple | None) -> list[list[Any]] | None:
        """For each role the tensors of all parameters; None if they have to be checked one by one."""
        if options != self._options or len(params) != len(self._params) or not all(map(is_, params, self._params)):
            return None
        columns: list[list[Any]] = [params, [p.grad for p in params]]
        checked = [True, True]
        found: list[Any] = list(map(states.get, params))
        for source in self._sources:
            checked.append(isinstance(source, str))
            if checked[-1] and not all(found):
                return None
            columns.append([state.get(source) for state in found] if isinstance(source, str) else source)
        for column, dtype, check in zip(columns, self._dtypes, checked, strict=True):
            if check and not (
                memory.plain(column)
                and all(map(_on_cpu, column))
                and set(map(_dtype, column)) == {dtype}
                and list(map(_shape, column)) == self._shapes
                and list(map(torch.Tensor.stride, column)) == self._strides
            ):
                return None
        steps = [state["step"] for state in found if state and "step" in state]
        return columns if all(map(_on_cpu, steps)) else None


def cached(rows: Sequence[Any], states: dict, options: tuple | None) -> CachedStep | None:
    """The step's cache, or None unless its single launch has one memory layout, on a CPU, and no words on a device."""
    if options is None or any(x.numel() if isinstance(x, torch.Tensor) else x for row in rows for x in row.on_device):
        return None
    columns = [list(column) for column in zip(*[row.tensors for row in rows], strict=True)]
    if not all(map(memory.plain, columns)) or not all(dense(p) is p for p in columns[0]):
        return None
    if not all(t.is_cpu and t.stride() == row.tensors[0].stride() for row in rows for t in row.tensors if t.numel()):
        return None
    found = [states.get(p) or {} for p in columns[0]]
    names = [next((n for n, t in found[0].items() if t is column[0]), None) for column in columns[2:]]
    for column, name in zip(columns[2:], names, strict=True):
        if any(t.numel() if name is None else state.get(name) is not t for t, state in zip(column, found, strict=True)):
            return None
    return CachedStep(columns[0], columns, names, options, [row.on_device for row in rows])
