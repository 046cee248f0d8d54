"""The part of a printed operation between its name and its types: attributes, and the types of the results."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from gradlab.kernels.cpu.ttir import Operation, Type
from gradlab.kernels.cpu.ttir_locations import unescape
from gradlab.kernels.cpu.ttir_text import put_strings, read_attribute, read_constant, read_type, read_types

_VALUE = re.compile(r"%[\w$.\-]+(?:#\d+)?")
_SET = re.compile(r"(\w+) = ([\w.+\-]+)")
_FLAGS = re.compile(r"\b(overflow|fastmath)<([^>]*)>")
_CALLEE = re.compile(r'@([\w.$\-]+|"\d+")')
_STRING = re.compile(r'"(\d+)"')
_WORD = re.compile(r"[\w.$\-]+")

# Defaults, which are not printed.
DEFAULTS = {"tt.dot": {"input_precision": "ieee"}}
# Keywords before the operands, in their order.
_WORDS = {
    "arith.cmpi": ("predicate",),
    "arith.cmpf": ("predicate",),
    "tt.atomic_rmw": ("kind", "semantics", "scope"),
    "tt.atomic_cas": ("semantics", "scope"),
    "tt.descriptor_reduce": ("kind",),
}
_STRINGS = {"tt.print": "message", "tt.assert": "message", "tt.elementwise_inline_asm": "assembly"}
# One name for attributes that releases print differently.
_RENAMED = {
    "inputPrecision": "input_precision",
    "cacheModifier": "cache_modifier",
    "evictionPolicy": "eviction_policy",
    "isVolatile": "volatile",
}
_SWITCHES = ("allow_reorder", "efficient_layout")


def read_head(operation: Operation, head: str, types: str, strings: Sequence[str]) -> None:
    """Read the attributes from the text before the types."""
    name, attributes = operation.name, operation.attributes
    if name == "arith.constant":
        type_ = read_type(types) if types else Type((), "i1")
        attributes["value"] = read_constant(head.strip(), type_, strings)
        return
    if name == "tt.dot_scaled":
        attributes["scales"] = [" scale " in part for part in head.split(", ")[:2]]
        head = head.replace(" scale ", " ")
    elif name == "tt.call":
        callee = _CALLEE.search(head)
        if callee is None:
            raise ValueError("a call of no function")
        attributes["callee"] = unescape(put_strings(callee[1], strings).strip('"'))
        head = head[: callee.start()] + head[callee.end() :]
    if name in _STRINGS and (message := _STRING.search(head)):
        attributes[_STRINGS[name]] = unescape(strings[int(message[1])])
        head = head[: message.start()] + head[message.end() :]
    for key, values in _FLAGS.findall(head):
        attributes[key] = [value.strip() for value in values.split(",")]
    head = _FLAGS.sub("", head)
    for key, value in _SET.findall(head):
        attributes[key] = read_attribute(value)
    words = _WORD.findall(_SET.sub("", _VALUE.sub("", head)))
    if name in ("tt.get_program_id", "tt.get_num_programs"):
        attributes["axis"] = "xyz".index(words.pop(0))
    for key in _WORDS.get(name, ()):
        attributes[key] = words.pop(0)
    for switch in _SWITCHES:
        if switch in words:
            words.remove(switch)
            attributes[switch] = True
    if words:
        attributes["text"] = put_strings(" ".join(words), strings)


def rename(attributes: dict[str, Any]) -> None:
    """Give attributes the names that the tree documents."""
    for printed, name in _RENAMED.items():
        if printed in attributes:
            attributes[name] = attributes.pop(printed)
    # Triton 3.9 merges two of them into one.
    if policy := attributes.pop("cachePolicy", None):
        attributes.update(_SET.findall(policy))


def result_types(operation: Operation, types: str) -> list[Type]:
    """Types of the results: those after the arrow, else derived from the operands' types."""
    before, after = read_types(types)
    if after is not None:
        return [read_type(text) for text in after]
    rule = _RULES.get(operation.name)
    if rule:
        return rule(operation, before)
    if not before:
        raise ValueError("results without a type")
    # Most operations without an arrow print one type, of the operands and of each result.
    return [read_type(before[0])]


def _truth(operation: Operation, printed: tuple[str, ...]) -> list[Type]:
    return [read_type(printed[0]).with_element("i1")]


def _loaded(operation: Operation, printed: tuple[str, ...]) -> list[Type]:
    address = read_type(printed[0])
    element = address.element[1:]
    return [read_type(element) if element.startswith("tensor<") else address.with_element(element)]


def _last(operation: Operation, printed: tuple[str, ...]) -> list[Type]:
    return [read_type(printed[-1])]


def _block_pointer(operation: Operation, printed: tuple[str, ...]) -> list[Type]:
    return [read_type(f"!tt.ptr{printed[0].removeprefix('!tt.ptr')}")]


def _descriptor(operation: Operation, printed: tuple[str, ...]) -> list[Type]:
    return [read_type(f"!tt.tensordesc{printed[-1].removeprefix('!tt.tensordesc')}")]


def _scalar(operation: Operation, printed: tuple[str, ...]) -> list[Type]:
    return [Type((), read_type(printed[0]).element)]


def _constant(operation: Operation, printed: tuple[str, ...]) -> list[Type]:
    return [read_type(printed[0]) if printed else Type((), "i1")]


def _printed(operation: Operation, printed: tuple[str, ...]) -> list[Type]:
    return [read_type(text) for text in printed]


_RULES: dict[str, Callable[[Operation, tuple[str, ...]], list[Type]]] = {
    "arith.cmpi": _truth,
    "arith.cmpf": _truth,
    "arith.constant": _constant,
    "arith.select": _last,
    "arith.addui_extended": _printed,
    "tt.advance": _block_pointer,
    "tt.load": _loaded,
    "tt.make_tensor_ptr": _block_pointer,
    "tt.make_tensor_descriptor": _descriptor,
    "tt.unsplat": _scalar,
}
