"""Reads AMD machine code, from the assembly that Triton's compiler writes."""

import re
from collections import Counter

from gradlab.profiling.machine_code.counts import Counts

_KINDS = {
    "tensor": re.compile(r"v_s?mfmac?_"),
    "loads": re.compile(r"(global|flat|buffer)_load_"),
    "stores": re.compile(r"(global|flat|buffer)_store_"),
    "waits": re.compile(r"s_waitcnt"),
    "barriers": re.compile(r"s_barrier"),
    "atomics": re.compile(r"(global|flat|buffer)_atomic_"),
    "spills": re.compile(r"scratch_(load|store)_"),
}


def count(text: str, file: str = "") -> Counts:
    """Count a kernel's instructions; by source line where the name of its file is given."""
    kinds: Counter[str] = Counter()
    lines: Counter[int] = Counter()
    files = dict(re.findall(r'^\s+\.file\s+(\d+)\s+(?:".*?"\s+)?"(.*?)"', text, re.M))
    here, line, inside = "", 0, False
    for row in text.splitlines():
        # A kernel's code is between its label and its end; metadata follows.
        if re.match(r"\w+:\s*;\s*@", row):
            inside = True
        if ".Lfunc_end" in row:
            inside = False
        place = re.match(r"\s+\.loc\s+(\d+) (\d+)", row)
        if place:
            here, line = _frame(row, files.get(place.group(1), ""), int(place.group(2)), file)
            continue
        found = re.match(r"\s+([a-z]\w+)", row)
        if not inside or not found:
            continue
        name = found.group(1)
        kinds["instructions"] += 1
        if file and line and here.rsplit("/", 1)[-1] == file.rsplit("/", 1)[-1]:
            lines[line] += 1
        for kind, pattern in _KINDS.items():
            if not pattern.match(name):
                continue
            kinds[kind] += 1
            words = re.search(r"dwordx?(\d*)", name)
            wide = int(words.group(1) or 1) if words else 1
            if kind in ("loads", "stores") and wide >= 4:
                kinds[f"wide_{kind}"] += 1
            if kind in ("loads", "stores") and re.search(r"\blds\b", row):
                kinds["copies"] += 1
            if kind == "spills":
                kinds["spill_bytes"] += 4 * wide
    return Counts(**kinds, lines=dict(sorted(lines.items())))


def resources(text: str) -> tuple[int, int, int]:
    """Vector registers of a thread, those of the matrix cores among them; bytes of scratch; bytes of static LDS."""
    found = {
        key: re.search(rf"\.{key}:\s+(\d+)", text)
        for key in ("vgpr_count", "private_segment_fixed_size", "group_segment_fixed_size")
    }
    registers, stack, shared = (int(m.group(1)) if m else 0 for m in found.values())
    return registers, stack, shared


def _frame(row: str, here: str, line: int, file: str) -> tuple[str, int]:
    """The innermost frame of the comment that lies in `file`, else the one that the directive names."""
    for name, number in re.findall(r"([^\s:\[\]]+):(\d+):\d+", row.partition(";")[2]):
        if file and name.rsplit("/", 1)[-1] == file.rsplit("/", 1)[-1]:
            return name, int(number)
    return here, line
