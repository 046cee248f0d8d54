"""Results that a launch should have written and that torch reads: what of torch's functions reads its arguments."""

import sys
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gradlab.kernels.cpu.sanitize_shadow_torch import storage_address

# Functions that read a tensor and give none.
_READ = {
    "__bool__",
    "__contains__",
    "__float__",
    "__format__",
    "__int__",
    "__repr__",
    "allclose",
    "equal",
    "is_nonzero",
    "item",
    "tolist",
}
# Members of a tensor, such as its gradient.
_MEMBERS = {"__get__", "__set__", "__delete__"}
_NUMBERS = {int, bool, str, type(None), torch.Size, torch.dtype, torch.device, torch.layout}
# Functions that give a tensor of others' shape, and read none of their elements.
_SHAPED = ("_like", "new_")


class Reads(TorchFunctionMode):
    """Says of each tensor that a function of torch has read, which and where.

    Args:
        note: called with the tensor and words for the reader: `sum at script.py:12`.
        wanted: whether a tensor is worth asking for.
        some: not empty where any is.
    """

    def __init__(
        self, note: Callable[[torch.Tensor, str], None], wanted: Callable[[torch.Tensor], bool], some: Collection[int]
    ) -> None:
        super().__init__()
        self._note = note
        self._wanted = wanted
        self._some = some

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs) if kwargs else func(*args)
        if not self._some:
            return result
        name = getattr(func, "__name__", "")
        # Most calls ask for a size or an address: they are over soon.
        if (type(result) in _NUMBERS and name not in _READ) or name in _MEMBERS or torch.compiler.is_compiling():
            return result
        if name not in _READ and next(_tensors(result), None) is None:
            return result
        if name.endswith(_SHAPED[0]) or name.startswith(_SHAPED[1]):
            return result
        given = [t for value in (*args, *_inputs(kwargs)) for t in _tensors(value) if self._wanted(t)]
        if given:
            # What shares memory with a result is a view of it, or is written.
            made = {storage_address(t) for t in _tensors(result)}
            for tensor in given:
                if storage_address(tensor) not in made:
                    self._note(tensor, f"{name} at {_place()}")
        return result


def _inputs(options: Any) -> Iterator[Any]:
    for name, value in (options or {}).items():
        if name != "out":
            yield value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _place() -> str:
    """File and line of what called torch, past torch itself and this package's own machinery."""
    frame = sys._getframe(2)
    while frame.f_back is not None and "/torch/" in frame.f_code.co_filename.replace("\\", "/"):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
