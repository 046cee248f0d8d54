"""Guarded memory that shows unwritten elements and out-of-bounds writes; custom ops and Functions in a graph."""

import math
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gradlab.kernels.private.private_torch import TorchDispatchMode

_NEW = {torch.empty, torch.empty_like, torch.Tensor.new_empty, torch.empty_strided, torch.Tensor.new_empty_strided}
# Guard elements on either side: this many plus an eighth of the tensor, to catch a wrong stride too.
_GUARD = 64
# The fill of integers, which have no NaN; guards are compared bit for bit.
_FILL = 0x5A


class MemoryGuards(TorchFunctionMode):
    """While active, memory from torch.empty and its variants is filled with NaN and placed between guards."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[tuple[torch.Tensor, int, int, tuple[int, ...]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func not in _NEW or not isinstance(made, torch.Tensor) or made.layout != torch.strided:
            return made
        if not made.numel():
            # Nothing to guard; as `out=` it would be resized.
            return made
        extent = 1 + sum((n - 1) * s for n, s in zip(made.shape, made.stride(), strict=True))
        guard = _GUARD + extent // 8
        buffer = _poison(torch.empty(extent + 2 * guard, dtype=made.dtype, device=made.device))
        self._buffers.append((buffer, guard, guard + extent, tuple(made.shape)))
        fresh = buffer.as_strided(made.shape, made.stride(), guard)
        return fresh.requires_grad_() if made.requires_grad else fresh

    def overrun(self) -> str:
        """The guards that were overwritten, in words; empty if none was."""
        overruns = []
        for buffer, start, stop, shape in self._buffers:
            fresh = _poison(torch.empty_like(buffer))
            changed = buffer.view(torch.uint8) != fresh.view(torch.uint8)
            width = buffer.element_size()
            before, after = changed[: start * width].any(), changed[stop * width :].any()
            ends = [word for word, hit in (("before its start", before), ("past its end", after)) if hit]
            if ends:
                overruns.append(f"a tensor of shape {list(shape)} {' and '.join(ends)}")
        return ", ".join(overruns)


class CallWatcher(TorchFunctionMode):
    """Records whether a torch function is called whose name contains a word."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word, self.seen = word, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= self.word in getattr(func, "__name__", "")
        return func(*args, **(kwargs or {}))


def _poison(buffer: torch.Tensor) -> torch.Tensor:
    """Fill with NaN, or with a fixed integer."""
    if buffer.is_floating_point() or buffer.is_complex():
        return buffer.fill_(math.nan)
    return buffer.fill_(True if buffer.dtype == torch.bool else _FILL)


class _CustomOpRecorder(TorchDispatchMode):
    """Records the first call of every op that is not torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[Any, tuple[Any, Any]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: otherwise torch imports its compiler, which takes two seconds and is not used under a mode."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = func.namespace in ("aten", "prim", "prims", "profiler", "inductor", "quantized", "_c10d_functional")
        if not own and func not in self.seen:
            copied = [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args]
            self.seen[func] = (tuple(copied), dict(kwargs or {}))
        return func(*args, **(kwargs or {}))


def used_ops(call: Callable[[], Any]) -> list[tuple[Any, tuple, dict]]:
    """Every custom op in a call, with the arguments of its first call."""
    watch = _CustomOpRecorder()
    with watch:
        call()
    return [(op, args, kwargs) for op, (args, kwargs) in watch.seen.items()]


def nodes(results: Iterable[torch.Tensor]) -> list[Any]:
    """Every node of the autograd graph of these results."""
    found: dict[Any, None] = {}
    todo = [y.grad_fn for y in results if y.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node not in found:
            found[node] = None
            todo += [n for n, _ in node.next_functions if n is not None]
    return list(found)


def hand_written(results: Iterable[torch.Tensor]) -> bool:
    """Whether the graph of these results contains a custom Function."""
    return any(getattr(node, "_forward_cls", None) is not None for node in nodes(results))


def marked_once_differentiable(gradients: Iterable[torch.Tensor | None]) -> bool:
    """Whether a backward in the graph of these gradients is `once_differentiable`: torch puts a node there that raises.

    A second derivative for the inputs may not reach that node: it is then silently None or zero.
    """
    return any(node.name() == "torch::autograd::Error" for node in nodes(g for g in gradients if g is not None))


def declares_vmap(results: Iterable[torch.Tensor], error: BaseException) -> bool:
    """Whether every custom Function in the graph declares a vmap, and the exception was raised in one of them."""
    kinds = {kind for kind in (getattr(n, "_forward_cls", None) for n in nodes(results)) if kind is not None}
    declared = all(k.generate_vmap_rule or k.vmap is not torch.autograd.Function.vmap for k in kinds)
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(kinds) and declared and any(f.endswith(("autograd_function.py", "autograd/function.py")) for f in files)
