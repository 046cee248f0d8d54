"""What was read of a CPU's code, as tables for a terminal of 80 columns or more."""

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from gradlab.profiling.machine_code.code import Code

# Twelve columns and the spaces between them: 79 characters, where names are short.
WIDTHS = {
    "kernel": 14,
    "pass": 8,
    "bits": 4,
    "spill": 5,
    "stack": 6,
    "FMA": 3,
    "wide": 7,
    "gath": 4,
    "mask": 4,
    "scal": 4,
    "div": 3,
    "instr": 5,
}
# Shown too where the terminal is wider.
MORE = {"regs": 4, "code": 6, "programs": 8}
NOTES = (
    "of the innermost loops: bits of their widest vector; spill: bytes of registers moved, in red where to the stack "
    "too; wide: loads and stores of several elements, of all; gath: lane by lane, gathers or scatters; mask: with "
    "lanes left out; scal: arithmetic on one float; div: divisions and roots. Of all the code: stack: with tiles, of a "
    "thread; FMA: of vectors, or on AMX's tiles; instr: as they stand there"
)
NOTES_MORE = "; regs: vector registers; code: bytes; programs: of the largest grid"


def table(codes: Sequence[Code], width: int) -> Table:
    """A row a kernel."""
    found = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    spare = width - sum(WIDTHS.values()) - len(WIDTHS)
    more = wide(width)
    name_width = min(WIDTHS["kernel"] + max(0, spare), max(map(len, [*(code.name for code in codes), " " * 14])))
    for name, size in {**WIDTHS, "kernel": name_width, **(MORE if more else {})}.items():
        left = name in ("kernel", "pass")
        found.add_column(
            name, width=size, no_wrap=True, overflow="ellipsis" if left else "fold", justify="left" if left else "right"
        )
    for code in codes:
        found.add_row(*_cells(code)[: None if more else len(WIDTHS)])
    return found


def wide(width: int) -> bool:
    """Whether a terminal has room for all columns."""
    return width >= 10 + sum((*WIDTHS.values(), *MORE.values())) + len(WIDTHS) + len(MORE)


def notes(width: int) -> str:
    """What the columns mean."""
    return NOTES + (NOTES_MORE if wide(width) else "")


def words(codes: Sequence[Code]) -> list[str]:
    """What the code is for, and which kernels call what is no part of them: `product calls memset`."""
    by_names: dict[tuple[str, ...], list[str]] = {}
    for code in codes:
        if code.called and code.kernel not in by_names.setdefault(code.called, []):
            by_names[code.called].append(code.kernel)
    known = [f"{code.cpu}, vectors of {code.vector_bits} bits" for code in codes if code.cpu]
    return known[:1] + [
        f"{', '.join(kernels)} call{'s' if len(kernels) == 1 else ''} {', '.join(names)}"
        for names, kernels in by_names.items()
    ]


def _cells(code: Code) -> tuple[str | Text, ...]:
    n = code.inner
    if code.error or n is None:
        return code.name, code.direction, Text("!", "bold red")
    accesses = n.loads + n.stores
    return (
        code.name,
        code.direction,
        str(n.bits or "-"),
        _warned(size(n.spill_bytes), n.spill_stores),
        size(code.stack + code.scratch),
        str(code.fact("products") or "-"),
        f"{n.wide_loads + n.wide_stores}/{accesses}" if accesses else "-",
        str(n.gathers + n.scatters or "-"),
        str(n.masked or "-"),
        _warned(str(n.scalars or "-"), n.scalars),
        str(n.divisions or "-"),
        str(code.counts.instructions),
        str(code.registers or "-"),
        size(code.size),
        str(math.prod(code.grid)),
    )


def _warned(text: str, bad: int) -> Text:
    return Text(text, "bold red" if bad else "")


def size(n: int) -> str:
    """`48 B`, `96 K`; a dash for none."""
    if n == 0:
        return "-"
    return f"{n} B" if n < 1000 else f"{n / 1024:.3g} K"
