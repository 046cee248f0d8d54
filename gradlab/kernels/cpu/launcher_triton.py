"""The launcher that Triton calls: turns the user's arguments into addresses and numbers for `launching.Kernel`.

A kernel reads memory at a bare address, so every argument is checked: a tensor on another device, a lazily negated one,
or one without memory of its own raises.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from gradlab.kernels.cpu import sanitize_torch, types
from gradlab.kernels.cpu.launching import Kernel
from gradlab.kernels.cpu.sanitize_run import Examined

_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Launcher:
    """Triton calls it for every launch of one compiled kernel."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self._pick = picker(list(src.signature.values()))
        self._wanted = len(src.signature)
        self._kernel: Kernel | None = None
        self._pointers: list[int] = []
        self._count = 0
        self._examined = False
        self._file = source_file(src)

    def __call__(
        self,
        x: int,
        y: int,
        z: int,
        stream: int,
        kernel: Kernel,
        packed: Any,
        launch_metadata: Any,
        enter: Callable | None,
        leave: Callable | None,
        *args: Any,
    ) -> None:
        if kernel is not self._kernel:
            self._bind(kernel)
        if enter is not None:
            enter(launch_metadata)
        try:
            values = list(self._pick(args))
        except (IndexError, ValueError):
            values = []
        if len(values) != self._count:
            wanted = f"wanted {self._wanted}, constants among them"
            raise TypeError(f"{kernel.binary.name}: {len(args)} arguments were given, {wanted}")
        given = list(values) if self._examined else values
        for index in self._pointers:
            value = values[index]
            if type(value) in _PLAIN and value.is_cpu and not value.is_neg():
                values[index] = value.data_ptr()
            else:
                values[index] = address(value, kernel, index)
        if self._examined:
            sanitize_torch.launch(kernel, (x, y, z), values, given)
        else:
            kernel((x, y, z), values)
        if leave is not None:
            leave(launch_metadata)

    def _bind(self, kernel: Kernel) -> None:
        arguments = kernel.binary.arguments
        self._pointers = [index for index, (_, kind) in enumerate(arguments) if types.is_pointer(kind)]
        self._count = len(arguments)
        self._examined = isinstance(kernel, Examined)
        if isinstance(kernel, Examined):
            kernel.file = self._file
        self._kernel = kernel


def address(value: Any, kernel: Kernel, index: int) -> int:
    """The address of an argument's memory; None is a null pointer.

    Raises:
        TypeError, ValueError: the argument has no CPU memory that a kernel could read as it is.
    """
    name = kernel.binary.arguments[index][0]
    if value is None or isinstance(value, int):
        return value or 0
    # triton.reinterpret wraps a tensor to give it another dtype.
    tensor = getattr(value, "base", value) if not isinstance(value, torch.Tensor) else value
    if not isinstance(tensor, torch.Tensor):
        return _address_alone(value, f"{kernel.binary.name}: {name} is a {_kind(value)}")
    where = f"{kernel.binary.name}: {name} is a {_kind(tensor)}"
    if tensor.device.type != "cpu":
        raise ValueError(f"{where} on {tensor.device}, wanted a tensor on the CPU")
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise TypeError(f"{where}, which has no memory of its own, wanted a plain tensor")
    if tensor.is_neg():
        raise ValueError(f"{where} that is negated lazily, wanted its resolve_neg()")
    try:
        return tensor.data_ptr()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise TypeError(f"{where} without memory of its own, wanted a plain tensor ({reason})") from None


def _address_alone(value: Any, where: str) -> int:
    """The address of an object that is no tensor: Triton accepts every object with a `data_ptr()` and a dtype.

    Such an object is an address with a type, or a view that torch does not have (of negative strides, for instance).
    """
    device = getattr(value, "device", None)
    if device is not None and torch.device(device).type != "cpu":
        raise ValueError(f"{where} on {device}, wanted a tensor on the CPU")
    data_ptr = getattr(value, "data_ptr", None)
    if data_ptr is None:
        raise TypeError(f"{where}, wanted a tensor on the CPU")
    return operator.index(data_ptr())


def picker(signature: Sequence[Any]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A function from a launch's arguments to those that the compiled kernel takes, in its order.

    Constants are dropped, tuples are flattened, and a tensor descriptor becomes its base, shape and strides.

    Args:
        signature: Triton's type of each argument, "constexpr" for a constant, and a tuple of these for a tuple.
    """
    if all(isinstance(kind, str) and not kind.startswith("tensordesc") for kind in signature):
        passed = [index for index, kind in enumerate(signature) if kind != "constexpr"]
        if len(passed) > 1:
            return operator.itemgetter(*passed)
        return lambda args: [args[index] for index in passed]
    return lambda args: list(_leaves(signature, args))


def _leaves(signature: Sequence[Any], args: Sequence[Any]) -> Iterable[Any]:
    for kind, value in zip(signature, args, strict=True):
        if isinstance(kind, tuple | list):
            yield from _leaves(kind, value)
        elif kind.startswith("tensordesc"):
            yield from _descriptor(value)
        elif kind != "constexpr":
            yield value


def _descriptor(value: Any) -> Iterable[Any]:
    """A host tensor descriptor, flattened as the front end does it: shape and strides come twice."""
    yield value.base
    yield from value.shape
    yield from value.strides
    yield value.padding == "nan"
    if hasattr(value, "round_f32_to_tf32"):
        yield value.round_f32_to_tf32
    yield from value.shape
    yield from value.strides


def _kind(value: Any) -> str:
    return type(value).__name__


def source_file(src: Any) -> str:
    """The file of the kernel that Triton compiles, where it is made of a Python function."""
    code = getattr(getattr(getattr(src, "fn", None), "fn", None), "__code__", None)
    return "<unknown>" if code is None else code.co_filename
