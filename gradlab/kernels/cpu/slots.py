"""The arguments of a kernel in memory: a block of 8-byte slots, one each, in the order of the kernel's parameters."""

import ctypes
import operator
import struct
from collections.abc import Sequence
from typing import Any

from gradlab.kernels.cpu import types

_FORMATS = {
    "i1": "?7x",
    "i8": "b7x",
    "i16": "h6x",
    "i32": "i4x",
    "i64": "q",
    "f16": "e6x",
    "bf16": "H6x",
    "f32": "f4x",
    "f64": "d",
}


class Slots:
    """Writes one kernel's arguments, each at the start of its slot; the rest of a slot is zero."""

    def __init__(self, kernel: str, arguments: Sequence[tuple[str, str]]) -> None:
        for name, kind in arguments:
            if not types.is_pointer(kind) and kind not in _FORMATS:
                raise TypeError(f"{kernel}: {name} is a {kind}, wanted an argument that is an address or a number")
        self._kernel = kernel
        self._arguments = tuple(arguments)
        self._struct = struct.Struct(
            "<" + "".join("Q" if types.is_pointer(kind) else _FORMATS[kind] for _, kind in arguments)
        )
        self.size = max(self._struct.size, 8)
        self._direct = all(kind != "bf16" for _, kind in arguments)

    def write(self, block: Any, values: Sequence[Any]) -> None:
        """Write the arguments' values into a writable buffer of `size` bytes.

        Raises:
            TypeError, ValueError: an argument is no number of its type, or there are too many or too few of them.
        """
        if self._direct:
            try:
                self._struct.pack_into(block, 0, *values)
                return
            except (struct.error, OverflowError, TypeError):
                # struct refuses valid values: 2**31 for a uint32, and 1e39, which is infinity in float32.
                pass
        if len(values) != len(self._arguments):
            raise TypeError(f"{self._kernel}: {len(values)} arguments were given, wanted {len(self._arguments)}")
        self._struct.pack_into(
            block, 0, *[self._value(*argument, value) for argument, value in zip(self._arguments, values, strict=True)]
        )

    def _value(self, name: str, kind: str, value: Any) -> Any:
        if types.is_pointer(kind):
            return self._integer(name, 0 if value is None else value, 64, unsigned=True, wanted="an address")
        if kind == "i1":
            return bool(value)
        if not types.is_float(kind):
            width = types.bits(kind)
            return self._integer(name, value, width, unsigned=False, wanted=f"an integer of {width} bits")
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"{self._kernel}: {name} is {_shown(value)}, wanted a number") from None
        if kind == "bf16":
            return int(types.constant(number, kind))
        if kind == "f32":
            return ctypes.c_float(number).value
        if kind == "f16" and abs(number) >= 65520:
            return float("inf") if number > 0 else float("-inf")
        return number

    def _integer(self, name: str, value: Any, width: int, *, unsigned: bool, wanted: str) -> int:
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"{self._kernel}: {name} is {_shown(value)}, wanted {wanted}") from None
        if not (0 if unsigned else -(2 ** (width - 1))) <= number < 2**width:
            raise ValueError(f"{self._kernel}: {name} is {number}, wanted {wanted}")
        return number - 2**width if not unsigned and number >= 2 ** (width - 1) else number


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 and "\n" not in text else f"a {type(value).__name__}"
