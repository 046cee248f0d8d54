"""Rows into a file of tiles, beside what it holds."""

import json
import re
import tomllib
from dataclasses import fields
from pathlib import Path

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


def save(file: Path, row: Row) -> None:
    """Put a row of one place and dtype into the file, in place of what it has for these.

    Raises:
        ValueError: the file cannot be written, or has the row together with others.
    """
    before = file.read_text(encoding="utf-8") if file.exists() else _HEAD
    head, *blocks = re.split(r"(?m)^(?=\[\[)", before)
    kept = [block for block in blocks if not _replaced(block, row, file)]
    text = "".join([head, *kept]).rstrip("\n") + "\n\n" + entry(row)
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


def _replaced(block: str, row: Row, file: Path) -> bool:
    """Whether the entry is for the same kind, place and dtype."""
    (found,) = tomllib.loads(block).get("tile", [None])
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
