"""The lab's kernels beside those of others, as a table for a terminal of 80 columns and as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradlab.base.files import write_whole
from gradlab.base.machine import describe
from gradlab.profiling.machine_code.code import Code
from gradlab.profiling.machine_code.peers import Compared, PeerRow
from gradlab.profiling.machine_code.report_cpu import size

# Increased when a key is removed or changes its meaning, not for a new key.
SCHEMA = 1
# Eleven columns and the spaces between them: 79 characters.
WIDTHS = {
    "of": 8,
    "kernel": 18,
    "pass": 4,
    "regs": 4,
    "spill": 5,
    "shared": 6,
    "blk": 3,
    "128-bit": 7,
    "instr": 5,
    "MMA": 4,
    "bytes": 5,
}
# What kernels call the rows and columns of a product's tile.
_TILES = (("BM", "BLOCK_M"), ("BN", "BV", "BLOCK_N"))
NOTES = (
    "regs, spill: registers of a thread, bytes it spills; shared: bytes of a block; blk: blocks resident on a "
    "multiprocessor; 128-bit: global accesses that wide, of all; instr: instructions of threads, executed in machine "
    "code by all programs as by the first; MMA: cycles of tensor cores, of the most that a part of a multiprocessor "
    "needs; bytes: of the sectors that programs touch, each program's once, over the least of the pass. inductor's "
    "kernels are those that it writes for Triton on a CPU, products with a GPU's tile. Nothing here is a time"
)


def show(wanted: Compared, rows: Sequence[PeerRow], dtype: str, arch: str, console: Console) -> None:
    """One case: a row for each kernel, a line for each peer without one."""
    sizes = ", ".join(f"{axis} {n}" for axis, n in wanted.case.sizes.items())
    console.print(Text.assemble((f"{wanted.op}, {dtype}, {arch}", "bold"), f"; {wanted.case.name}: {sizes}"))
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name, width in WIDTHS.items():
        left = name in ("of", "kernel", "pass")
        table.add_column(name, width=width, no_wrap=True, overflow="ellipsis", justify="left" if left else "right")
    for row in rows:
        if row.code is not None and not row.code.error:
            table.add_row(*_cells(row))
    console.print(table)
    for row in rows:
        if row.words:
            console.print(Text(f"{row.who}: {row.words}", "dim" if row.code is None else "bold red"), soft_wrap=True)
    console.print(Text(f"instr: for each {wanted.words}", "dim"))
    console.print()


def _cells(row: PeerRow) -> tuple[str | Text, ...]:
    code = row.code
    assert code is not None
    n = code.counts
    return (
        row.who,
        short(code),
        {"forward": "fwd", "backward": "bwd"}.get(code.direction, code.direction),
        str(code.registers),
        Text(size(n.spill_bytes), "bold red") if n.spill_bytes else "-",
        size(code.shared_static + code.shared_dynamic),
        "-" if code.blocks is None else str(code.blocks),
        f"{n.wide_loads + n.wide_stores}/{n.loads + n.stores}",
        _number(row.each),
        "-" if row.share is None else f"{row.share:.0%}",
        _number(row.traffic),
    )


def _number(value: float | None) -> str:
    """Three digits, in five columns."""
    if value is None:
        return "-"
    if value < 1:
        return "<.01" if 0 < value < 0.01 else f"{value:.2f}"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def short(code: Code) -> str:
    """A kernel's name with its tile, `matmul 128x256`; inductor's `triton_tem_fused_addmm_0` is `addmm`."""
    parts = code.kernel.split("_")
    name = "_".join(parts[3:-1]).strip("_") or code.kernel if parts[0] == "triton" else code.kernel
    rows, columns = (next((code.options[n] for n in names if n in code.options), "") for names in _TILES)
    return f"{name} {rows}x{columns}" if code.counts.tensor and rows and columns else name


def write_json(path: Path, found: Sequence[tuple[Compared, Sequence[PeerRow]]], dtype: str, arch: str) -> None:
    """Every row of every case."""
    head: dict[str, Any] = {"schema": SCHEMA, "machine": describe(), "dtype": dtype, "arch": arch}
    head["cases"] = [
        {
            "op": wanted.op,
            "case": wanted.case.name,
            "sizes": dict(wanted.case.sizes),
            "instructions_per": wanted.words,
            "kernels": [_plain(row) for row in rows],
        }
        for wanted, rows in found
    ]
    write_whole(path, json.dumps(head, indent=1) + "\n")


def _plain(row: PeerRow) -> dict[str, Any]:
    code = row.code.as_json() if row.code else None
    return {"of": row.who, "instructions": row.each, "tensor_share": row.share, "traffic": row.traffic} | {
        "words": row.words,
        "code": code,
    }
