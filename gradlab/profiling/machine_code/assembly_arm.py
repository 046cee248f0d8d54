"""Reads aarch64 assembly as LLVM writes it: the destination comes first."""

import re
from dataclasses import replace

from gradlab.profiling.machine_code.instruction import Dialect, Instruction

# Whole vectors: v0.4s, q0, z0.s; one element: s0, d0, h0, v0.s[1].
_WHOLE = re.compile(r"\b(?:v\d+\.(?:16b|8h|4s|2d)|q\d+|z\d+(?:\.[bhsdq])?)(?!\[|\w)")
_HALF = re.compile(r"\bv\d+\.(?:8b|4h|2s|1d)\b")
_ONE = re.compile(r"^[bhsd]\d+$")
_NUMBER = re.compile(r"\b[vqzdsh](\d+)\b")
_LOAD = re.compile(r"(ld|prf)(?!add|set|clr|eor|smax|smin|umax|umin)")
_STORE = re.compile(r"st(?!add|set|clr|eor|smax|smin|umax|umin)")
_ATOMIC = re.compile(r"(ld|st)(add|set|clr|eor|[su]max|[su]min)|swp|cas|ldx|ldax|stx|stlx")
_FMA = re.compile(r"fml[as]|fn?m(add|sub|ad|sb|la|ls)$|bfdot|bfmla|bfmmla")
_DIVISION = re.compile(r"fdivr?$|fsqrt$|[su]divr?$")
_TENSOR = re.compile(r"[bsu]f?mmla$|b?fmopa$")
_LANE = re.compile(r"\{.*\}\[\d+\]")
_SCALAR = re.compile(r"(?!fmov|fc?cmp)f[a-z]|[su]cvtf")
_FUNCTION = re.compile(r"#:abs_g\d(?:_nc)?:([A-Za-z_][\w.$]*)")


def read(i: Instruction, bits: int) -> Instruction:
    """Kinds, bits and call of an instruction; a vector of SVE has `bits`."""
    name, operands, words = i.name, i.operands, ", ".join(i.operands)
    if name in ("bl", "blr", "b", "br"):
        target = operands[0] if operands else ""
        local = target.startswith(".L") or name == "br"
        return replace(i, call="" if local else f"%{target}" if name == "blr" else target)
    if _ATOMIC.match(name):
        return replace(i, kinds=("atomics",))
    kinds: list[str] = []
    scalar = bool(_SCALAR.match(name)) and bool(operands) and bool(_ONE.match(operands[0]))
    kinds += ["fmas"] * bool(_FMA.match(name)) + ["divisions"] * bool(_DIVISION.match(name))
    kinds += ["scalars"] * scalar + ["tensor"] * bool(_TENSOR.match(name))
    for direction, pattern in (("load", _LOAD), ("store", _STORE)):
        if pattern.match(name) and "[" in words:
            kinds += _access(name, operands, words, direction)
    whole = bool(_WHOLE.search(words))
    wide = bits if re.search(r"\bz\d", words) else 128 if whole else 64 if _HALF.search(words) else 0
    return replace(i, kinds=tuple(kinds), bits=wide)


def _access(name: str, operands: tuple[str, ...], words: str, direction: str) -> list[str]:
    kinds = [f"{direction}s"]
    if name.startswith(("ld1r", "ld2r")):
        return kinds
    # An element of a vector from memory or to it, and addresses in a vector.
    if _LANE.search(words) or re.search(r"\[[^\]]*\bz\d", words):
        return [*kinds, "gathers" if direction == "load" else "scatters"]
    if re.search(r"\bp\d+/z|\bp\d+,", words):
        kinds.append("masked")
    # d0 is two floats, or four halves, as often as one double.
    several = bool(_WHOLE.search(words)) or bool(re.match(r"d\d+$", operands[0]))
    return [*kinds, f"wide_{direction}s"] if several else kinds


def vectors(i: Instruction) -> set[str]:
    """Vector registers that it names."""
    return set(_NUMBER.findall(", ".join(i.operands)))


def address(i: Instruction) -> tuple[str, str] | None:
    """`movz x8, #:abs_g0_nc:memset`."""
    found = _FUNCTION.search(i.operands[1]) if i.name in ("movz", "movk") and len(i.operands) > 1 else None
    return (f"%{i.operands[0]}", found.group(1)) if found else None


def frame(i: Instruction) -> int:
    """Bytes by which the stack grows."""
    if i.name == "sub" and i.operands[:2] == ("sp", "sp") and i.operands[2].startswith("#"):
        shift = re.search(r"lsl #(\d+)", ", ".join(i.operands))
        return int(i.operands[2][1:], 0) << int(shift.group(1) if shift else 0)
    found = re.search(r"\[sp, #-(\d+)\]!", ", ".join(i.operands))
    return int(found.group(1)) if found else 0


ARM = Dialect("//", read, vectors, address, frame)
