"""LLVM IR with debug locations, so that machine code can be listed by source line.

Launches compile without them: locations cost compile time, and the code is the same.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gradlab.kernels.cpu.emit import Emitter
from gradlab.kernels.cpu.lanes import Lane
from gradlab.kernels.cpu.lower import NAME, Kernel
from gradlab.kernels.cpu.ttir import Operation
from gradlab.kernels.cpu.values import Index, Lazy

# Marks the code written for a line; a comment in LLVM's syntax.
_MARK = "; line "
_RESULT = re.compile(r"  (%[\w.]+) = ")
_LABEL = re.compile(r"^[\w.]+:$")
# First metadata number that the module without locations does not use.
_FIRST = 100


class LineEmitter(Emitter):
    """Records the source line of each name: its instruction may be hoisted out of its line's code.

    Attributes:
        line: the line that code is being written for.
        places: line of each name.
    """

    line = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        self.places: dict[str, int] = {}
        super().__init__(*args, **options)

    def name(self) -> str:
        """A fresh SSA name."""
        made = super().name()
        self.places[made] = self.line
        return made


class Located(Kernel):
    """A kernel whose instructions carry the line of their operation.

    In a chain of calls the innermost line in the kernel's own file counts: the code of `tl.sum` belongs to the line
    that calls it.
    """

    emitter = LineEmitter
    b: LineEmitter
    _at: Operation | None = None

    @property
    def at(self) -> Operation | None:
        """The operation being lowered."""
        return self._at

    @at.setter
    def at(self, op: Operation | None) -> None:
        self._at = op
        if op is not None:
            self.b.line = self._line(op)
            self.b.lines.append(f"{_MARK}{self.b.line}")

    def _line(self, op: Operation) -> int:
        place = self.module.where(op.location)
        file = self._file()
        return next((line for name, line in ((place.file, place.line), *place.callers) if name == file), 0)

    def _file(self) -> str:
        return self.module.where(self.kernel.location).file

    def _evaluate(self, value: Lazy, index: Index) -> Lane:
        before, self.at = self._at, value.op
        found = super()._evaluate(value, index)
        self.at = before
        return found

    def _text(self, head: list[str], body: list[str]) -> str:
        first = self.module.where(self.kernel.location).line
        return located(super()._text(head, body), self.b.places, self._file(), first)


def located(ir: str, places: Mapping[str, int], file: str, first: int) -> str:
    """The module with LLVM's debug locations.

    Args:
        ir: the module, with a mark in front of the code of each line.
        places: the line of each name that has one.
        first: the line of the function.
    """
    lines: set[int] = set()
    define = f"define i64 @{NAME}("
    rows = list(_rows(ir.splitlines(), define, places, first, lines))
    folder, _, name = file.rpartition("/")
    unit, source, kind, function, flags = range(_FIRST, _FIRST + 5)
    program = f"language: DW_LANG_Python, file: !{source}, isOptimized: true, emissionKind: LineTablesOnly"
    of_function = f'name: "{NAME}", scope: !{source}, file: !{source}, line: {first}, type: !{kind}, unit: !{unit}'
    rows += [
        f"!llvm.dbg.cu = !{{!{unit}}}",
        f"!llvm.module.flags = !{{!{flags}}}",
        f'!{flags} = !{{i32 2, !"Debug Info Version", i32 3}}',
        f"!{unit} = distinct !DICompileUnit({program})",
        f'!{source} = !DIFile(filename: "{_escaped(name)}", directory: "{_escaped(folder)}")',
        f"!{kind} = !DISubroutineType(types: !{{}})",
        f"!{function} = distinct !DISubprogram({of_function}, spFlags: DISPFlagDefinition | DISPFlagOptimized)",
        *(f"!{_number(line)} = !DILocation(line: {line}, scope: !{function})" for line in sorted(lines)),
    ]
    return "\n".join(rows) + "\n"


def _rows(rows: list[str], define: str, places: Mapping[str, int], first: int, lines: set[int]) -> Iterator[str]:
    inside, line = False, first
    for row in rows:
        if row.startswith(define):
            inside, line = True, first
            yield row.replace(" #0 {", f" #0 !dbg !{_FIRST + 3} {{")
        elif row == "}":
            inside = False
            yield row
        elif row.startswith(_MARK):
            line = int(row.removeprefix(_MARK)) or first
        elif inside and row and not _LABEL.match(row):
            named = _RESULT.match(row)
            here = (places.get(named.group(1)) if named else None) or line
            lines.add(here)
            yield f"{row}, !dbg !{_number(here)}"
        else:
            yield row


def _number(line: int) -> int:
    """The metadata of a line."""
    return _FIRST + 10 + line


def _escaped(text: str) -> str:
    return text.replace("\\", "\\5C").replace('"', "\\22")
