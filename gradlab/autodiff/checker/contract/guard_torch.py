"""Memory that shows what a kernel does to it, and the custom ops that a call goes through."""

import math
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gradlab.kernels.private.private_torch import TorchDispatchMode

_NEW = {torch.empty, torch.empty_like, torch.Tensor.new_empty, torch.empty_strided, torch.Tensor.new_empty_strided}
# Elements of guard on either side: at least a few, and a part of the tensor, which a wrong stride jumps over.
_GUARD = 64
# What integers start as, where there is no NaN; a guard of it is compared bit for bit.
_ODD = 0x5A


class Guarded(TorchFunctionMode):
    """While it is on, memory from torch.empty and its kin holds NaN and lies between guards."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[tuple[torch.Tensor, int, int, tuple[int, ...]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func not in _NEW or not isinstance(made, torch.Tensor) or made.layout != torch.strided:
            return made
        if not made.numel():
            # Nothing to guard; whoever passes it as `out=` has it made anew.
            return made
        extent = 1 + sum((n - 1) * s for n, s in zip(made.shape, made.stride(), strict=True))
        guard = _GUARD + extent // 8
        buffer = _odd(torch.empty(extent + 2 * guard, dtype=made.dtype, device=made.device))
        self._buffers.append((buffer, guard, guard + extent, tuple(made.shape)))
        fresh = buffer.as_strided(made.shape, made.stride(), guard)
        return fresh.requires_grad_() if made.requires_grad else fresh

    def overrun(self) -> str:
        """Which guards were written over, in words; empty when none was."""
        said = []
        for buffer, start, stop, shape in self._buffers:
            fresh = _odd(torch.empty_like(buffer))
            changed = buffer.view(torch.uint8) != fresh.view(torch.uint8)
            width = buffer.element_size()
            before, after = changed[: start * width].any(), changed[stop * width :].any()
            ends = [word for word, hit in (("before its start", before), ("past its end", after)) if hit]
            if ends:
                said.append(f"a tensor of shape {list(shape)} {' and '.join(ends)}")
        return ", ".join(said)


class Watched(TorchFunctionMode):
    """Whether a function of torch is called whose name holds a word."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word, self.seen = word, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= self.word in getattr(func, "__name__", "")
        return func(*args, **(kwargs or {}))


def _odd(buffer: torch.Tensor) -> torch.Tensor:
    """Filled with NaN, or with a strange integer."""
    if buffer.is_floating_point() or buffer.is_complex():
        return buffer.fill_(math.nan)
    return buffer.fill_(True if buffer.dtype == torch.bool else _ODD)


class _Watch(TorchDispatchMode):
    """Notes the first call of every op that torch does not bring itself."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[Any, tuple[Any, Any]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: for that torch imports its compiler, which takes two seconds, and under a mode nothing is compiled."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = func.namespace in ("aten", "prim", "prims", "profiler", "inductor", "quantized", "_c10d_functional")
        if not own and func not in self.seen:
            copied = [a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args]
            self.seen[func] = (tuple(copied), dict(kwargs or {}))
        return func(*args, **(kwargs or {}))


def used_ops(call: Callable[[], Any]) -> list[tuple[Any, tuple, dict]]:
    """Every custom op that a call goes through, each with the arguments of its first time."""
    watch = _Watch()
    with watch:
        call()
    return [(op, args, kwargs) for op, (args, kwargs) in watch.seen.items()]


def nodes(results: Iterable[torch.Tensor]) -> list[Any]:
    """Every node of autograd's graph behind these results."""
    found: dict[Any, None] = {}
    todo = [y.grad_fn for y in results if y.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node not in found:
            found[node] = None
            todo += [n for n, _ in node.next_functions if n is not None]
    return list(found)


def by_hand(results: Iterable[torch.Tensor]) -> bool:
    """Whether a Function that is not torch's own is behind these results."""
    return any(getattr(node, "_forward_cls", None) is not None for node in nodes(results))


def once(gradients: Iterable[torch.Tensor | None]) -> bool:
    """Whether a backward behind these gradients is marked `once_differentiable`: torch puts a node that raises there.

    Nobody meets it who asks for gradients of inputs: they are None, or zeros.
    """
    return any(node.name() == "torch::autograd::Error" for node in nodes(g for g in gradients if g is not None))


def declares_vmap(results: Iterable[torch.Tensor], error: BaseException) -> bool:
    """Whether every Function behind these results says that it has a vmap, and an exception came out of one of them."""
    kinds = {kind for kind in (getattr(n, "_forward_cls", None) for n in nodes(results)) if kind is not None}
    declared = all(k.generate_vmap_rule or k.vmap is not torch.autograd.Function.vmap for k in kinds)
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(kinds) and declared and any(f.endswith(("autograd_function.py", "autograd/function.py")) for f in files)
