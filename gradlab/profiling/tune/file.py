"""Rows into a file of tiles, beside what it holds."""

import json
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

from gradlab.base.files import claim, write_whole
from gradlab.kernels.configs.tiles import Row, read

_HEAD = "# Rows that `gradlab tune` measured on this machine's GPUs; they go before the package's.\n"


def check(file: Path) -> None:
    """Say that a file cannot take rows before they are measured.

    Raises:
        ValueError: it is no file of tiles, or cannot be written.
    """
    try:
        claim(file.absolute().parent)
    except OSError as error:
        raise ValueError(f"tune: output is {file}, wanted a file that can be written: {error.strerror}") from error
    if file.exists():
        read(file)
        _entries(file)


def save(file: Path, row: Row) -> None:
    """Put a row of one place and dtype into the file, in place of what it has for these.

    Raises:
        ValueError: the file cannot be written, or has the row together with others.
    """
    head, entries = _entries(file) if file.exists() else (_HEAD, [])
    kept = [text for text, data in entries if not _replaced(data, row, file)]
    text = "".join([head, *kept]).rstrip() + "\n\n" + entry(row)
    try:
        write_whole(file, text)
    except OSError as error:
        raise ValueError(f"tune: output is {file}, wanted a file that can be written: {error.strerror}") from error


def entry(row: Row) -> str:
    """A row as the file has it."""
    return "\n".join(["[[tile]]", *(f"{f.name} = {_value(getattr(row, f.name))}" for f in fields(row)), ""])


def _value(value: str | int | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_string, value))}]"
    return _string(value) if isinstance(value, str) else str(value)


def _entries(file: Path) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    """What stands before a file's entries, and each as it stands there and as it is read: those stay as they are.

    Raises:
        ValueError: TOML's other ways to write them, which a row can be neither taken out of nor put behind.
    """
    head, *blocks = re.split(r"(?m)^(?=[ \t]*\[\[)", file.read_text(encoding="utf-8"))
    try:
        begun = not tomllib.loads(head)
        entries = [(block, tomllib.loads(block)) for block in blocks]
    except tomllib.TOMLDecodeError:
        begun = False
    if not begun:
        raise ValueError(f"tune: {file} has arrays or lines of text in brackets, wanted entries [[tile]]")
    return head, entries


def _replaced(data: dict[str, Any], row: Row, file: Path) -> bool:
    """Whether the entry is for the same kind, place and dtype."""
    (found,) = data.get("tile", [None])
    (place,), (dtype,) = row.on, row.dtypes
    if not found or found["kernel"] != row.kernel or place not in found["on"] or dtype not in found["dtypes"]:
        return False
    if len(found["on"]) > 1 or len(found["dtypes"]) > 1:
        raise ValueError(
            f"tune: {row.kernel} on {place} in {dtype} stands in {file} in a row with others, wanted a row of its own"
        )
    return True


def _string(text: str) -> str:
    """A basic string of TOML: JSON's, but for what JSON leaves as it is and TOML or UTF-8 does not allow."""
    return json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=False).replace("\x7f", "\\u007f")
