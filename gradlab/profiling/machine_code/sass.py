"""Reads NVIDIA machine code: instructions by kind and by source line, registers, stack, shared memory."""

import functools
import importlib
import itertools
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence

from gradlab.profiling.machine_code.counts import Counts
from gradlab.profiling.machine_code.cubin import instructions
from gradlab.profiling.machine_code.targets import RESERVED, Target
from gradlab.profiling.machine_code.tools import run_tool

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:\{\s*)?(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_.]*)")
_OFFSET = re.compile(r"^\s+/\*([0-9a-f]+)\*/")
_PLACE = re.compile(r'//## File "(.*?)", line (\d+)')
_KINDS = {
    "tensor": re.compile(r"(H|HG|D|I|IG|Q|QG|O|B|UTC[A-Z]*)MMA\b"),
    "loads": re.compile(r"(LD|LDG|LDGSTS|UTMALDG|UBLKCP|UBLKPF)\b"),
    "stores": re.compile(r"(ST|STG|UTMASTG|UBLKRED)\b"),
    "copies": re.compile(r"(LDGSTS|UTMALDG|UBLKCP)\b"),
    "waits": re.compile(r"DEPBAR\b|WARPGROUP\.DEPBAR\b|SYNCS\.PHASECHK\b|LDTM_WAIT\b"),
    "barriers": re.compile(r"(BAR|UCGABAR_ARV|UCGABAR_WAIT)\b"),
    "atomics": re.compile(r"(ATOM|ATOMG|RED|REDG)\b"),
    "spills": re.compile(r"(LDL|STL)\b"),
}
# Bits that one access moves for each thread: 32 unless it says otherwise; a bulk copy moves a block of memory.
_WIDTH = re.compile(r"\.(?:U|S)?(8|16|64|128|256)\b")
_BULK = re.compile(r"(UTMA|UBLK)")


def read(cubins: Sequence[bytes], machine: str) -> list[Counts]:
    """Count the instructions of each kernel.

    One nvdisasm process disassembles all of them as one stretch of code, as it takes 0.4 s to start.

    Args:
        machine: what they are assembled for, as PTX has it: "sm_90a".
    """
    codes = [instructions(cubin) for cubin in cubins]
    text = str(run_tool("nvdisasm", "-b", machine.replace("sm_", "SM"), data=b"".join(codes), suffix=".bin"))
    ends = list(itertools.accumulate(map(len, codes)))
    rows: list[list[str]] = [[] for _ in codes]
    for row in text.splitlines():
        found = _OFFSET.match(row)
        if found:
            rows[bisect_right(ends, int(found.group(1), 16))].append(row)
    return [count("\n".join(of_one)) for of_one in rows]


@functools.lru_cache(1024)
def lines(cubin: bytes, file: str) -> dict[int, int]:
    """Count a kernel's instructions by line of the source file of that name."""
    text = run_tool("nvdisasm", "-c", "-ndf", "-g", data=cubin, suffix=".cubin")
    return dict(count(str(text), file).lines)


def count(text: str, file: str = "") -> Counts:
    """The same of what nvdisasm printed."""
    kinds: Counter[str] = Counter()
    lines: Counter[int] = Counter()
    for line, name in located(text, file):
        kinds["instructions"] += 1
        if line:
            lines[line] += 1
        bits = _bits(name)
        for kind, pattern in _KINDS.items():
            if not pattern.match(name):
                continue
            kinds[kind] += 1
            if kind in ("loads", "stores") and bits >= 128:
                kinds[f"wide_{kind}"] += 1
            if kind == "spills":
                kinds["spill_bytes"] += bits // 8
        if name.startswith("UTMACCTL.IV"):
            # What a block waits for before it uses its tensor map: the map, written once more by an exchange.
            kinds["atomics"] -= 1
    return Counts(**kinds, lines=dict(sorted(lines.items())))


def located(text: str, file: str = "") -> Iterator[tuple[int, str]]:
    """Each instruction that nvdisasm printed: its line of a file, 0 for none, and its name."""
    here, line = "", 0
    for row in text.splitlines():
        place = _PLACE.search(row)
        if place:
            here, line = place.group(1), int(place.group(2))
            continue
        name = instruction(row)
        if name is not None:
            yield line if _same(here, file) else 0, name


def instruction(row: str) -> str | None:
    """The name of the instruction in a row; None where there is none, or padding, which is no part of the kernel."""
    found = _INSTRUCTION.match(row)
    return found.group(1) if found and found.group(1) != "NOP" else None


def resources(cubin: bytes, where: Target) -> tuple[int, int, int]:
    """Registers of a thread, bytes of its stack, bytes of static shared memory of a block."""
    text = str(run_tool("cuobjdump", "-res-usage", data=cubin, suffix=".cubin"))
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", text)
    if found is None:
        raise RuntimeError("cuobjdump: no line of resources")
    registers, stack, shared = map(int, found.groups())
    # From sm_90 on the number holds what CUDA reserves; before, it is added where the kernel is loaded.
    return registers, stack, shared - RESERVED if where.number >= 90 and shared >= RESERVED else shared  # type: ignore[operator]


def relined(ptx: str, file: str) -> str:
    """The PTX with each instruction on the line of `file` that it was inlined to.

    SASS names only the innermost line, which of a `tl.sum` lies in Triton; the comments of the PTX name the callers,
    and from Triton 3.9 on its directives, of each the next one.
    """
    numbers = {path: number for number, path in re.findall(r'\.file\s+(\d+)\s+"(.*?)"', ptx)}
    number = next((n for path, n in numbers.items() if _same(path, file)), None)
    if number is None:
        return ptx

    caller: dict[tuple[str, ...], tuple[str, ...]] = {}

    def moved(found: re.Match[str]) -> str:
        place = tuple(map(str, found.group("file", "line", "column")))
        if found.group("caller"):
            caller[place] = tuple(found.group("caller").split())
        here, steps = caller.get(place, place) if place[0] != number else place, 0
        while here[0] != number and here in caller and steps < len(caller):
            here, steps = caller[here], steps + 1
        if here[0] == number:
            return f"\t.loc\t{number} {here[1]} {here[2]}\n"
        for name, line, column in re.findall(r"([^\s:\[\]]+):(\d+):(\d+)", found.group("frames")):
            if _same(name, file):
                return f"\t.loc\t{number} {line} {column}\n"
        return found.group(0)

    return _LOC.sub(moved, ptx)


_LOC = re.compile(
    r"^\t\.loc\t(?P<file>\d+) (?P<line>\d+) (?P<column>\d+)"
    r"(?:, function_name \S+, inlined_at (?P<caller>\d+ \d+ \d+))?\s*//(?P<frames>[^\n]*)\n",
    re.M,
)


def assembled(ptx: str, where: Target) -> bytes:
    """The PTX assembled as Triton does it."""
    program = importlib.import_module("gradlab.profiling.machine_code.compile_triton").assembler(where)
    words = ("-lineinfo", f"--gpu-name={machine(ptx, where)}")
    made = run_tool(program, *words, data=ptx.encode(), suffix=".ptx", out="kernel.cubin")
    assert isinstance(made, bytes)
    return made


def serialised(ptx: str, where: Target) -> bool:
    """Whether ptxas makes every wgmma wait for the one before, which it says when it cannot tell that none need to."""
    program = importlib.import_module("gradlab.profiling.machine_code.compile_triton").assembler(where)
    words = ("-v", f"--gpu-name={machine(ptx, where)}", "-o", os.devnull)
    return "wgmma.mma_async instructions are serialized" in str(
        run_tool(program, *words, data=ptx.encode(), suffix=".ptx", messages=True)
    )


def machine(ptx: str, where: Target) -> str:
    """What the PTX is written for, which may be more than the architecture has everywhere: "sm_90a"."""
    named = re.search(r"\.target\s+(\w+)", ptx)
    return named.group(1) if named else where.name


def _bits(name: str) -> int:
    if _BULK.match(name):
        return 1024
    found = _WIDTH.findall(name)
    return max(map(int, found)) if found else 32


def _same(path: str, file: str) -> bool:
    """Whether two paths end in one name: Triton's cache may hold paths of another checkout."""
    return bool(file) and path.rsplit("/", 1)[-1] == file.rsplit("/", 1)[-1]
