"""The lowest float dtype among the tensors that a torch function's forward makes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gradlab.autodiff.checker.core.internals import Internals
from gradlab.kernels.private.private_torch import pytree


class _Recorder(TorchFunctionMode):
    """Records the float dtypes of the tensors that torch's functions return."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(results):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                self.seen.add(leaf.dtype)
        return results


def internals(fn: Callable[..., Any], args: Sequence[Any]) -> Internals:
    """The largest rounding unit among the float dtypes of a call; 0 if it makes no float tensor."""
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        fn(*args)
    return Internals(max((torch.finfo(dtype).eps / 2 for dtype in recorder.seen), default=0.0))
