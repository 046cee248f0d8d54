"""Reads x86-64 assembly as LLVM writes it: sources first, the destination last."""

import re
from dataclasses import replace

from gradlab.profiling.machine_code.instruction import Dialect, Instruction

_VECTOR = re.compile(r"%([xyz])mm(\d+)")
_BITS = {"x": 128, "y": 256, "z": 512}
_MASK = re.compile(r"\{%k\d\}")
_BROADCAST = re.compile(r"\{1to\d+\}")
_NO_ACCESS = re.compile(r"lea|nop|prefetch|call|jmp|push|pop|ret")
_FMA = re.compile(r"vfn?m(add|sub)(add|sub)?\d+[ps][sdh]$|vdpbf16ps$")
_DIVISION = re.compile(r"v?(div|sqrt)[ps][sdh]$|i?div[bwlq]?$")
_GATHER = re.compile(r"vp?gather")
_SCATTER = re.compile(r"vp?scatter")
# One element of a vector from memory or to it.
_LANE_IN = re.compile(r"v?pinsr[bwdq]$|v?insertps$")
_LANE_OUT = re.compile(r"v?pextr[bwdq]$|v?extractps$")
_ONE = re.compile(r"v?mov(ss|sd|d|sh|w)$|vp?broadcast|vmovddup$")
_MASKED = re.compile(r"vp?maskmov")
# Arithmetic on one float: names of packed integers end alike, and begin with p.
_SCALAR = re.compile(r"(?!v?(?:p|mov|broadcast|insert|extract|u?comi))\w*s[sdh]$|v?cvtt?s[sdh]2")
_COMPARE = re.compile(r"v?u?comis[sdh]$|vcmp\w*s[sdh]$")
_TILES = re.compile(r"tdp|t2?rp|ttdp")
_TILE_MOVES = re.compile(r"tile(load|stor)")
_ADDRESS = re.compile(r"\$?([A-Za-z_%][\w.$]*)$")
_WRITES = re.compile(r"set|v?p?ext|vextract|tilestor|vcvt|vp?compress|vp?scatter|st")
_COMPARES = re.compile(r"cmp|test|bt|v?u?comi|vptest|vtest|kortest")


def read(i: Instruction, bits: int) -> Instruction:
    """Kinds, bits and call of an instruction."""
    name, operands = i.name, i.operands
    if name in ("lock", "rep"):
        return replace(i, kinds=("atomics",) if name == "lock" else ())
    if name.startswith(("call", "jmp")):
        target = operands[0].lstrip("*") if operands else ""
        return replace(i, call="" if target.startswith(".L") else target)
    kinds: list[str] = []
    vectors = [_BITS[size] for size, _ in _VECTOR.findall(" ".join(operands))]
    scalar = bool(_SCALAR.match(name))
    one = scalar or bool(_COMPARE.match(name))
    kinds += ["fmas"] * bool(_FMA.match(name)) + ["divisions"] * bool(_DIVISION.match(name))
    kinds += ["scalars"] * scalar + ["tensor"] * bool(_TILES.match(name))
    at = [k for k, operand in enumerate(operands) if _in_memory(operand)]
    if at and not _NO_ACCESS.match(name):
        last = at[-1] == len(operands) - 1
        reads = not last or len(operands) == 1 or bool(_COMPARES.match(name))
        # Arithmetic on memory reads it and writes it.
        both = last and not _is_move(name) and not reads
        kinds += _access(name, operands, bool(vectors), one, "load") if reads or both else []
        kinds += _access(name, operands, bool(vectors), one, "store") if last and not reads else []
    wide = 0 if one or (_ONE.match(name) and "broadcast" not in name) else max(vectors, default=0)
    return replace(i, kinds=tuple(kinds), bits=wide)


def _access(name: str, operands: tuple[str, ...], vector: bool, one: bool, direction: str) -> list[str]:
    kinds = [f"{direction}s"]
    words = " ".join(operands)
    if _GATHER.match(name) or (_LANE_IN.match(name) and direction == "load"):
        return [*kinds, "gathers"]
    if _SCATTER.match(name) or (_LANE_OUT.match(name) and direction == "store"):
        return [*kinds, "scatters"]
    if _MASKED.match(name) or (vector and _MASK.search(words) and not one):
        kinds.append("masked")
    several = vector and not one and not _ONE.match(name) and not _BROADCAST.search(words)
    return [*kinds, f"wide_{direction}s"] if several or _TILE_MOVES.match(name) else kinds


def _in_memory(operand: str) -> bool:
    """An address in registers, or behind a segment."""
    return "(" in operand


def _is_move(name: str) -> bool:
    """Whether it only writes to its memory operand."""
    return "mov" in name or bool(_WRITES.match(name))


def vectors(i: Instruction) -> set[str]:
    """Vector registers that it names."""
    return {number for _, number in _VECTOR.findall(" ".join(i.operands))}


def address(i: Instruction) -> tuple[str, str] | None:
    """`movabsq $memset, %rax`, or a copy of that register."""
    found = _ADDRESS.match(i.operands[0]) if i.name.startswith("mov") and len(i.operands) == 2 else None
    return (i.operands[1], found.group(1)) if found else None


def frame(i: Instruction) -> int:
    """Bytes by which the stack grows."""
    if i.name.startswith("push"):
        return 8
    if i.name == "subq" and i.operands[-1:] == ("%rsp",) and i.operands[0].startswith("$"):
        return int(i.operands[0][1:], 0)
    return 0


X86 = Dialect("#", read, vectors, address, frame)
