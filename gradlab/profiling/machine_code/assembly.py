"""Reads CPU machine code from the assembly that LLVM writes: loops, spills, calls, instructions by kind and line.

LLVM's comments tell the loop of each block and which accesses are spills; the rest is read from the instructions.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from gradlab.profiling.machine_code.assembly_arm import ARM
from gradlab.profiling.machine_code.assembly_x86 import X86
from gradlab.profiling.machine_code.counts import CPUCounts
from gradlab.profiling.machine_code.instruction import Dialect, Instruction

_FUNCTION = re.compile(r"^([A-Za-z_][\w.$]*):")
_BLOCK = re.compile(r"^(?:\.?L(BB\d+_\d+):|(?:#|//) %bb\.\d+:)")
_WITHIN = re.compile(r"in Loop: Header=(BB\d+_\d+) Depth=(\d+)")
_HEADER = re.compile(r"=>\s*This (Inner )?Loop Header: Depth=(\d+)")
_PLACE = re.compile(r"^\t\.loc\t\d+ (\d+) ")
_SPILLED = re.compile(r"(\d+)-byte (?:Folded )?(Spill|Reload)")


@dataclass(frozen=True)
class Read:
    """Facts read from the assembly of a kernel.

    Attributes:
        counts: of the whole code; inner: of its innermost loops.
        registers: vector registers that are named, of those that the CPU has.
        stack: bytes of the stack frames that are open at once, tiles' buffers among them.
        calls: functions outside of the module that are called, each once.
    """

    counts: CPUCounts
    inner: CPUCounts
    registers: int
    stack: int
    calls: tuple[str, ...]


def read(text: str, triple: str, bits: int, entry: str) -> Read:
    """Read a kernel's assembly.

    Args:
        triple: LLVM's target triple.
        bits: of a vector register.
        entry: the function that a launch calls; others of the module are on the lines that call them.
    """
    dialect = ARM if triple.startswith(("aarch64", "arm64")) else X86
    code = list(_instructions(text, dialect, bits))
    own = {i.function for i in code}
    calls = [(i, name) for i, name in _called(code, dialect) if name not in own]
    lines = _lines(code, dialect, own, entry)
    whole = _count(code, {id(i) for i, _ in calls})
    inner = [i for i in code if i.inner]
    return Read(
        counts=replace(whole, lines=lines),
        inner=_count(inner, {id(i) for i, _ in calls}),
        registers=len({name for i in code for name in dialect.vectors(i)}),
        stack=sum(_frames(code, dialect, entry)),
        calls=tuple(sorted({name for _, name in calls})),
    )


def _instructions(text: str, dialect: Dialect, bits: int) -> Iterator[Instruction]:
    rows = text.splitlines()
    inner = set(_innermost(rows))
    function, depth, header, line = "", 0, "", 0
    for row in rows:
        body, _, comment = row.partition(dialect.comment)
        block = _BLOCK.match(row)
        if block:
            header, depth = block.group(1) or "", 0
        if found := _FUNCTION.match(row):
            function, depth, header, line = found.group(1), 0, "", 0
        elif found := _PLACE.match(row):
            line = int(found.group(1))
        elif found := _WITHIN.search(comment):
            header, depth = found.group(1), int(found.group(2))
        elif found := _HEADER.search(comment):
            depth = int(found.group(2))
        # Skip directives and padding.
        if not re.match(r"\t[a-z]", body):
            continue
        name, _, operands = body.strip().partition("\t")
        spilled = _SPILLED.search(comment)
        moved, kind = (int(spilled.group(1)), spilled.group(2)) if spilled else (0, "")
        within = bool(depth) and header in inner
        yield dialect.read(
            Instruction(name, split(operands), function, depth, within, line, moved, kind == "Spill"), bits
        )


def _innermost(rows: Sequence[str]) -> Iterator[str]:
    """Blocks that begin a loop with none in it."""
    label = ""
    for row in rows:
        if block := _BLOCK.match(row):
            label = block.group(1) or ""
        if "This Inner Loop Header" in row:
            yield label


def split(operands: str) -> tuple[str, ...]:
    """Operands, at the commas that stand in no address and in no list of registers."""
    return tuple(part.strip() for part in _COMMA.split(operands.strip()) if part)


_COMMA = re.compile(r",(?![^(\[{]*[)\]}])")


def _count(code: Sequence[Instruction], outside: set[int]) -> CPUCounts:
    kinds: Counter[str] = Counter()
    for i in code:
        kinds["instructions"] += 1
        # Saving the caller's registers is no spill: it happens outside every loop.
        if i.spilled and i.depth:
            kinds["spills"] += 1
            kinds["spill_bytes"] += i.spilled
            kinds["spill_stores"] += i.stored
        kinds.update(kind for kind in i.kinds if not (i.spilled and kind in _ACCESSES))
        kinds["calls"] += id(i) in outside
    kinds["bits"] = max((i.bits for i in code), default=0)
    return CPUCounts(**cast("dict[str, Any]", kinds))


_ACCESSES = {"loads", "stores", "wide_loads", "wide_stores"}


def _called(code: Sequence[Instruction], dialect: Dialect) -> Iterator[tuple[Instruction, str]]:
    """Calls, and the function that each is of: its address is put into a register in front."""
    known: dict[str, str] = {}
    for i in code:
        if i.call:
            name = known.get(i.call, "") if i.call.startswith("%") else i.call
            if name:
                yield i, name
        elif address := dialect.address(i):
            register, name = address
            known[register] = known.get(name, "") if name.startswith("%") else name


def _lines(code: Sequence[Instruction], dialect: Dialect, own: set[str], entry: str) -> dict[int, int]:
    callers: dict[str, int] = {}
    for i, name in _called(code, dialect):
        if i.function == entry and name in own and i.line:
            callers.setdefault(name, i.line)
    lines = Counter(i.line or callers.get(i.function, 0) for i in code if i.function == entry or i.function in callers)
    lines.pop(0, None)
    return dict(sorted(lines.items()))


def _frames(code: Sequence[Instruction], dialect: Dialect, entry: str) -> tuple[int, int]:
    """Bytes of the entry's frame, and of the largest of those that it calls."""
    sizes: Counter[str] = Counter()
    for i in code:
        if not i.depth:
            sizes[i.function] += dialect.frame(i)
    return sizes.pop(entry, 0), max(sizes.values(), default=0)
