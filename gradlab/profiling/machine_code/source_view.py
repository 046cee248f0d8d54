"""A kernel's source with the instructions that each line became beside it."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gradlab.profiling.machine_code.code import Code
from gradlab.profiling.machine_code.found import PARSER
from gradlab.profiling.machine_code.inspection import ROOT


@dataclass(frozen=True)
class SourceLine:
    """A line of a kernel's file, without the indentation that all of its function has."""

    number: int
    text: str
    count: int


def source(code: Code) -> list[list[SourceLine]]:
    """The functions of the kernel's file that became instructions, line by line; nothing where no line is known.

    What a line calls is counted on that line, unless it stands in the same file.
    """
    return listing(ROOT / code.file, code.lines)


def listing(path: Path, lines: Mapping[int, int]) -> list[list[SourceLine]]:
    """The functions of a file that some of the lines are in, with the number of each line."""
    if not lines or not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    rows = text.splitlines()
    found: list[list[SourceLine]] = []
    for first, last in _functions(text):
        if any(first <= number <= last for number in lines):
            indent = min(len(row) - len(row.lstrip()) for row in rows[first - 1 : last] if row.strip())
            found.append([SourceLine(n, rows[n - 1][indent:], lines.get(n, 0)) for n in range(first, last + 1)])
    return found


def _functions(text: str) -> list[tuple[int, int]]:
    """First and last line of every function at the top of a file, decorators among them."""
    with PARSER:
        tree = ast.parse(text)
    return [
        (min([node.lineno, *(d.lineno for d in node.decorator_list)]), node.end_lineno or node.lineno)
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    ]
