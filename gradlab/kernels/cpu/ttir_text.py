"""Types, numbers and attributes of printed Triton IR."""

import re
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from gradlab.kernels.cpu import types
from gradlab.kernels.cpu.ttir import Type
from gradlab.kernels.cpu.ttir_locations import unescape

_TENSOR = re.compile(r"tensor<((?:\d+x)*)(.*)>")
_DESCRIPTOR = "!tt.tensordesc<"
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SAVED = re.compile(r'"(\d+)"')
_KEY = re.compile(r'([\w.$\-]+|"\d+")\s*(?:=\s*(.*))?', re.DOTALL)
_ARRAY = re.compile(r"array<(\w+)(?::\s*(.*))?>")
_DENSE = re.compile(r"dense<(.*)>", re.DOTALL)
_ITEM = re.compile(r"[^\[\],\s]+")
_TYPED = re.compile(r"(-?[\w.+\-]+)(?: : ([\w!.<>]+))?")
_INTEGER = re.compile(r"-?\d+|-?0x[0-9A-Fa-f]+")


def take_strings(line: str) -> tuple[str, list[str]]:
    """A line with its strings replaced by numbers, so that no string is taken for syntax; and the strings."""
    strings: list[str] = []

    def save(found: re.Match[str]) -> str:
        strings.append(found[1])
        return f'"{len(strings) - 1}"'

    return _STRING.sub(save, line), strings


def put_strings(text: str, strings: Sequence[str]) -> str:
    """A text with its strings as they were printed."""
    return _SAVED.sub(lambda found: f'"{strings[int(found[1])]}"', text) if '"' in text else text


def split(text: str) -> list[str]:
    """Parts between the commas that stand in no bracket."""
    if "," not in text:
        return [text.strip()] if text.strip() else []
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        if letter in "<([{":
            depth += 1
        elif letter in ")]}" or (letter == ">" and text[i - 1] != "-"):
            depth -= 1
        elif letter == "," and not depth:
            parts.append(text[start:i].strip())
            start = i + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]


@lru_cache(maxsize=4096)
def read_type(text: str) -> Type:
    """A printed type. Encodings of tensors and address spaces are dropped."""
    if found := _TENSOR.fullmatch(text):
        shape = tuple(map(int, found[1].split("x")[:-1]))
        return Type(shape, read_type(split(found[2])[0]).element)
    if text.startswith("!tt.ptr<"):
        inner = read_type(split(text[len("!tt.ptr<") : -1])[0])
        return Type((), f"*{inner}")
    if text.startswith(_DESCRIPTOR) and not text.startswith(f"{_DESCRIPTOR}tensor<"):
        # Triton 3.9 omits the `tensor<...>` in a descriptor's type.
        return Type((), f"{_DESCRIPTOR}tensor<{text[len(_DESCRIPTOR) : -1]}>>")
    if not text or text[0] in "(<%":
        raise ValueError(f"no type: {text!r}")
    return Type((), text)


@lru_cache(maxsize=4096)
def read_types(text: str) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The types after an operation's last colon: before the arrow, and after it if there is one."""
    for arrow in ("-> ", " to "):
        before, found, after = text.rpartition(arrow)
        if found:
            return _list(before), _list(after)
    return _list(text), None


def _list(text: str) -> tuple[str, ...]:
    text = text.strip()
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    return tuple(split(text))


def read_number(text: str, element: str) -> float | int | bool:
    """A number of an element type; a float is the value that the type holds, in binary."""
    if text in ("true", "false"):
        return text == "true"
    if element not in types.FLOATS:
        value = int(text, 0)
        return bool(value) if element == "i1" else value
    if text.startswith("0x"):
        return types.from_bits(int(text, 16), element)
    return _rounded(float(text), element)


def _rounded(value: float, element: str) -> float:
    """A decimal number rounded to an element type."""
    if element == "f32":
        return struct.unpack("<f", struct.pack("<f", value))[0]
    if element == "f16":
        return struct.unpack("<e", struct.pack("<e", value))[0]
    if element == "bf16":
        return types.from_bits(int(types.constant(value, element)), element)
    return value


def read_constant(text: str, type_: Type, strings: Sequence[str] = ()) -> float | int | bool | list[Any]:
    """The value of arith.constant: a number, for a splat too, or the numbers of a dense constant, row by row."""
    found = _DENSE.fullmatch(text)
    if not found:
        return read_number(text, type_.element)
    inner = found[1].strip()
    if saved := _SAVED.fullmatch(inner):
        return _from_bytes(bytes.fromhex(strings[int(saved[1])].removeprefix("0x")), type_)
    if not inner.startswith("["):
        # dense<> is a tensor without elements.
        return read_number(inner, type_.element) if inner else []
    values = [read_number(item, type_.element) for item in _ITEM.findall(inner)]
    if len(values) != type_.elements:
        raise ValueError(f"{len(values)} elements for {type_}")
    return values


def _from_bytes(data: bytes, type_: Type) -> float | int | bool | list[Any]:
    """A dense constant printed as the bytes of its elements, or of one element for a splat."""
    element = type_.element
    if element == "i1" and len(data) not in (1, type_.elements):
        raise ValueError("truth values packed in bits")
    size = types.size(element)
    words = [data[i : i + size] for i in range(0, len(data), size)]
    if element in types.FLOATS:
        values: list[Any] = [types.from_bits(int.from_bytes(word, "little"), element) for word in words]
    elif element == "i1":
        values = [word != b"\0" for word in words]
    else:
        values = [int.from_bytes(word, "little", signed=True) for word in words]
    if len(values) == 1:
        return values[0]
    if len(values) != type_.elements:
        raise ValueError(f"{len(values)} elements for {type_}")
    return values


def read_attributes(text: str, strings: Sequence[str] = ()) -> dict[str, Any]:
    """The attributes between braces; a name alone is True."""
    if '"' not in text:
        return dict(_plain_attributes(text))
    return _attributes(text, strings)


@lru_cache(maxsize=1024)
def _plain_attributes(text: str) -> dict[str, Any]:
    return _attributes(text, ())


def _attributes(text: str, strings: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in split(text):
        match = _KEY.fullmatch(part)
        if match is None:
            raise ValueError(f"no attribute: {part!r}")
        name = strings[int(match[1][1:-1])] if match[1].startswith('"') else match[1]
        found[name] = True if match[2] is None else read_attribute(match[2], strings)
    return found


def read_attribute(text: str, strings: Sequence[str] = ()) -> Any:
    """The value of one attribute: a number, a truth value, a string, a list, a dictionary, or its text."""
    text = text.strip()
    if saved := _SAVED.fullmatch(text):
        return unescape(strings[int(saved[1])])
    if text.startswith("[") and text.endswith("]"):
        return [read_attribute(item, strings) for item in split(text[1:-1])]
    if text.startswith("{") and text.endswith("}"):
        return _attributes(text[1:-1], strings)
    if found := _ARRAY.fullmatch(text):
        return [read_number(item, found[1]) for item in split(found[2] or "")]
    if text.startswith("dense<") and " : " in text:
        value, _, type_ = text.rpartition(" : ")
        return read_constant(value, read_type(type_), strings)
    if text in ("true", "false"):
        return text == "true"
    if found := _TYPED.fullmatch(text):
        element = found[2]
        if element in types.FLOATS or (element and _INTEGER.fullmatch(found[1])):
            return read_number(found[1], element)
        if element is None and _INTEGER.fullmatch(text):
            return int(text, 0)
    return put_strings(text, strings)
