"""What the largest launches of every op would take of a GPU, by what their first program executes: a model, no time.

`python benchmarks/kernel_limits.py FILE` writes the numbers of this checkout, in bfloat16 for sm_90, as `gradlab
inspect --executed` has them; with `--before OLDER` it prints both files as the table of docs/performance.md.
"""

import json
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer

from gradlab.base.files import write_whole
from gradlab.base.machine import describe
from gradlab.kernels.spec import Case, Spec, specs
from gradlab.profiling.machine_code.code import Code
from gradlab.profiling.machine_code.inspection import InspectRequest, InspectSubject, read, targets

# Cases beside each op's largest.
MORE = {
    "cross_entropy": ("capped logits", "odd rows, in place", "long rows, in place", "capped, in place"),
    "linear": ("square",),
}
# What kernels do now that had another name before.
SUCCESSORS = {
    ("cross_entropy", "loss"): "row_loss",
    ("cross_entropy", "backward"): "row_backward",
    ("conv2d", "forward"): "windows",
    ("conv2d", "dgrad"): "windows 2",
    ("conv2d", "wgrad"): "window_weights",
    ("conv2d", "bias_sum"): "pixel_sum",
}
# Sums of a few numbers, behind the kernels that the table is about.
SMALL = ("sum_rows", "mean_divisors", "merge", "column_sum", "sum_parts")
TILE = ("BM", "BN", "BV", "BK")


def collected(gpu: str = "H100") -> list[dict[str, Any]]:
    """A row for each kernel of forward and backward."""
    (where,) = targets(["sm_90"], gpu)
    subjects = tuple(
        InspectSubject(op, case, "torch", "bfloat16")
        for op in specs().values()
        for case in op.cases
        if case.name in (*MORE.get(op.name, ()), op.cases[-1].name) or case.use == "bench gpu"
    )
    rows = []
    for code in read(InspectRequest(subjects, (where,), gpu, executed=True)):
        if code.direction != "second":
            case = next(c for c in specs()[code.op].cases if c.name == code.case)
            rows.append(row(specs()[code.op], case, code))
    return rows


def row(op: Spec, case: Case, code: Code) -> dict[str, Any]:
    """What a table says of a kernel; instructions are counted for each element of the op's first input."""
    at = op.at(case)
    threads = code.threads_executed()
    return {
        "op": op.name,
        "case": case.name,
        "kernel": code.name,
        "pass": code.direction,
        "tile": "x".join(code.options[name] for name in TILE if name in code.options),
        "warps": code.options.get("warps"),
        "stages": code.options.get("stages"),
        "registers": code.registers,
        "spill": code.counts.spill_bytes,
        "shared": code.shared_static + code.shared_dynamic,
        "blocks": code.blocks,
        "wide": code.fact("wide_share"),
        "each": threads / prod(at.inputs[0].shape(at.sizes)) if threads is not None else None,
        "share": code.fact("tensor_share") if code.counts.tensor else None,
        "traffic": code.fact("traffic"),
        "error": code.error,
    }


def main(
    file: Annotated[Path, typer.Argument(help="Where the numbers of this checkout are, or are written.")],
    before: Annotated[Path | None, typer.Option(help="Numbers of another one: print the table of both.")] = None,
) -> None:
    """Collect into a file, or print the table of two."""
    if before is None:
        write_whole(file, json.dumps({"machine": describe(), "kernels": collected()}, indent=1) + "\n")
        return
    old, new = ({key(r): r for r in json.loads(f.read_text())["kernels"]} for f in (before, file))
    print("| op: case | kernel | tile, warps, stages | registers | shared | blocks | instr | MMA | bytes | measured |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in sorted(n for n in new if not n[2].startswith(SMALL)):
        pair = [side.get(name) for side in (old, new)]
        shown = [both(pair, field) for field in (size, registers, shared, blocks, each, share, traffic)]
        print(f"| {name[0]}: {name[1]} | {name[2]} | {' | '.join(shown)} | not measured |")


def key(found: dict[str, Any]) -> tuple[str, str, str]:
    """Which rows of two files are of one kernel."""
    return found["op"], found["case"], SUCCESSORS.get((found["op"], found["kernel"]), found["kernel"])


def both(pair: list[dict[str, Any] | None], field: Any) -> str:
    """`before → after`; one where they are alike, or where there is but one."""
    words = [field(r) for r in pair if r]
    return words[0] if len(set(words)) == 1 else " → ".join(words)


def size(r: dict[str, Any]) -> str:
    return f"{r['tile'] or '-'}, {r['warps']}, {r['stages']}"


def registers(r: dict[str, Any]) -> str:
    return f"{r['registers']}" + (f" + {r['spill']} B spilled" if r["spill"] else "")


def shared(r: dict[str, Any]) -> str:
    return f"{r['shared'] / 1024:.3g} K" if r["shared"] >= 1024 else f"{r['shared']} B"


def blocks(r: dict[str, Any]) -> str:
    return str(r["blocks"])


def each(r: dict[str, Any]) -> str:
    if r["each"] is None:
        return "-"
    return f"{r['each']:.3g}" if r["each"] < 1000 else f"{r['each']:,.0f}"


def share(r: dict[str, Any]) -> str:
    return "-" if r["share"] is None else f"{r['share']:.0%}"


def traffic(r: dict[str, Any]) -> str:
    return "-" if r["traffic"] is None else f"{r['traffic']:.3g}"


if __name__ == "__main__":
    typer.run(main)
