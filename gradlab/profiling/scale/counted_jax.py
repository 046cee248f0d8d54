"""What each device sends in a compiled program of jax, read from its text, `jit(f).lower(...).compile().as_text()`."""

import math
import re

from gradlab.profiling.scale.collective import Collective, Kind

# XLA's operations; where one starts and another one waits, the first is counted.
KINDS: dict[str, Kind] = {
    "all-reduce": "all-reduce",
    "all-reduce-start": "all-reduce",
    "all-gather": "all-gather",
    "all-gather-start": "all-gather",
    "reduce-scatter": "reduce-scatter",
}
OTHERS = ("all-to-all", "collective-permute", "collective-permute-start", "collective-broadcast", "ragged-all-to-all")
_LINE = re.compile(rf" = (.+?) ({'|'.join(map(re.escape, (*KINDS, *OTHERS)))})\(")
_BITS = re.compile(r"\b(?:[a-z]+?(\d+)(?:[a-z]\w*)?|pred)\[([\d,]*)\]")


def collectives(text: str) -> tuple[list[Collective], list[str]]:
    """The collectives that the model knows, and the names of others. What is in a loop is counted once.

    One operation on several arrays, as XLA makes of neighbouring ones, is one collective of all their bytes.
    """
    found: list[Collective] = []
    others: list[str] = []
    for line in text.splitlines():
        match = _LINE.search(line)
        if match is None:
            continue
        result, name = match.groups()
        if name in OTHERS:
            others.append(name)
            continue
        kind, devices = KINDS[name], group(line)
        sizes = [_bytes(bits, shape) for bits, shape in _BITS.findall(re.sub(r"/\*.*?\*/|\{[^}]*\}", "", result))]
        # A started all-gather's result holds its operand too.
        size = sizes[-1] if name == "all-gather-start" else sum(sizes)
        found.append(Collective(kind, size * devices if kind == "reduce-scatter" else size, devices))
    return found, others


def group(line: str) -> int:
    """Devices of a group: `{{0,1},{2,3}}`, `[2,2]<=[4]`, or axes of a mesh, `mesh['a'=2,'b'=2] {'a'}`; 0 for all."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=(?:@?\w+)?\[([^\]]*)\]\s*\{([^}]*)\}", line):
        sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part) if part else sizes[name] for name, part in parts)
    return 0


def _bytes(bits: str, shape: str) -> int:
    return max(1, int(bits or 8) // 8) * math.prod(int(n) for n in shape.split(",") if n)
