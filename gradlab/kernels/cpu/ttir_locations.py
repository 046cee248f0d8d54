"""Places in the source that printed Triton IR names: files, named values, chains of calls."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_FILE = re.compile(r'"((?:[^"\\]|\\.)*)":(\d+):(\d+)')
# A value's name around its location; a name alone has no location.
_NAMED = re.compile(r'"(?:[^"\\]|\\.)*"(?:\((.*)\))?$')
_CALL = "callsite("
# Helpers of Triton's own library: the line of the kernel that called them is reported instead.
_LIBRARY = re.compile(r"[/\\]triton[/\\]language[/\\]")


@dataclass(frozen=True)
class Place:
    """A place in the source.

    Attributes:
        file, line, column: the innermost frame in the user's code; "<unknown>" and 0 if there is none.
        callers: file and line of the frames that called it, inner to outer.
    """

    file: str = "<unknown>"
    line: int = 0
    column: int = 0
    callers: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def resolve(location: str, table: Mapping[str, str]) -> Place:
    """The place of a location, which is a key of the table or a location's text."""
    frames = _frames(location, table, 0)
    if not frames:
        return Place()
    first = next((i for i, (file, _, _) in enumerate(frames) if not _LIBRARY.search(file)), 0)
    file, line, column = frames[first]
    return Place(file, line, column, tuple((file, line) for file, line, _ in frames[first + 1 :]))


def _frames(location: str, table: Mapping[str, str], depth: int) -> list[tuple[str, int, int]]:
    """File, line and column of each frame, inner to outer."""
    text = location.strip()
    if depth > 200:
        raise ValueError(f"Triton IR: location {location} refers to itself")
    if text.startswith("#"):
        return _frames(table[text], table, depth + 1) if text in table else []
    if text.startswith(_CALL):
        inner, outer = _split_call(text[len(_CALL) : -1])
        return _frames(inner, table, depth + 1) + _frames(outer, table, depth + 1)
    if text.startswith("fused"):
        # A fused operation: the first part that has a place counts.
        for part in _parts(text[text.rindex("[") + 1 : text.rindex("]")] if "[" in text else ""):
            if frames := _frames(part, table, depth + 1):
                return frames
        return []
    if found := _FILE.match(text):
        return [(_plain(found[1]), int(found[2]), int(found[3]))]
    if (found := _NAMED.match(text)) and found[1]:
        return _frames(found[1], table, depth + 1)
    return []


def _split_call(text: str) -> tuple[str, str]:
    """The two sides of ` at `, outside of parentheses and quotes."""
    depth = 0
    quoted = False
    for i, letter in enumerate(text):
        if letter == '"' and text[i - 1 : i] != "\\":
            quoted = not quoted
        elif not quoted:
            depth += (letter == "(") - (letter == ")")
            if not depth and text.startswith(" at ", i):
                return text[:i], text[i + 4 :]
    raise ValueError(f"Triton IR: a call site without a caller: {text}")


def _parts(text: str) -> list[str]:
    """Locations of a list, separated by commas outside of parentheses and quotes."""
    parts = [""]
    depth = 0
    quoted = False
    for letter in text:
        quoted ^= letter == '"'
        depth += 0 if quoted else (letter == "(") - (letter == ")")
        if letter == "," and not depth and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _plain(text: str) -> str:
    """A printed string unescaped: MLIR escapes by two hexadecimal digits."""
    return unescape(text) if "\\" in text else text


def unescape(text: str) -> str:
    """A string that MLIR printed, without the quotes: `\\0A` is a newline, `\\\\` a backslash."""
    if "\\" not in text:
        return text
    raw = bytearray()
    data = text.encode()
    i = 0
    while i < len(data):
        if data[i] != 0x5C:
            raw.append(data[i])
            i += 1
        elif data[i + 1 : i + 2] in (b"\\", b'"'):
            raw.append(data[i + 1])
            i += 2
        else:
            raw.append(int(data[i + 1 : i + 3], 16))
            i += 3
    return raw.decode(errors="replace")
