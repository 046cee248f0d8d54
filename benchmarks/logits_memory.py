"""Peak memory of linear_cross_entropy, forward and backward, beside the two layers it stands for and the docs' formula.

`python benchmarks/logits_memory.py --out FILE` prints a table and writes it as Markdown; --m, --k, --v take sizes.
"""

import functools
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gradlab.autodiff.frameworks.side import Side, installed
from gradlab.autodiff.frameworks.side import side as side_of
from gradlab.base.files import write_whole
from gradlab.base.machine import describe, stamp
from gradlab.kernels.class_losses.chunks import chunk
from gradlab.kernels.spec import Case, spec
from gradlab.profiling.bench.peak import peak_bytes
from gradlab.profiling.native.native import native

OP, FLOAT = "linear_cross_entropy", 4
PLAIN = {"has_b": False, "has_a": False}


def formula(side: str, M: int, K: int, V: int) -> int:
    """Bytes of the gradient of h and w in float32: dx of a chunk, dh and dw; on jax a chunk of w and dw are copies."""
    width = chunk(M, K, V)
    copies = 2 * K * width * FLOAT if side == "jax" and width < V else 0
    return FLOAT * (M * width + M * K + K * V) + copies


def functions(side: Side) -> dict[str, Any]:
    """The op, the lab's two layers and the framework's, as functions of h[M K], w[K V], t[M]."""
    linear, loss = side.op("linear"), side.op("cross_entropy")
    return {
        f"gradlab.{side.name}.{OP}": side.op(OP),
        f"gradlab.{side.name}: linear, cross_entropy": lambda h, w, t: loss(linear(h, w), t),
        native(side.name, OP).label: native(side.name, OP).fn,
    }


def measured(name: str, M: int, K: int, V: int) -> dict[str, int]:
    """Most bytes in use at once beyond the inputs, while the loss and its gradient by h and w are computed."""
    # torch's profiler, which counts memory, says hello on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    side, op = side_of(name), spec(OP)
    case = Case("asked", {"M": M, "K": K, "V": V}, PLAIN)
    inputs = [side.put(a, "float32") for a in op.at(case).make().values()]
    one = [side.put(op.at(Case("one", {"M": 1, "K": 1, "V": 1}, PLAIN)).make()["h"][0, 0], "float32")]
    found = {}
    for label, fn in functions(side).items():
        pulled = side.pullback(fn, (0, 1))
        # jax tells of programs alone; torch's compiler would have a say in what is kept.
        call = functools.partial(pulled if name == "torch" else side.compiled(pulled), inputs, one)
        found[label] = peak_bytes(side, call) or 0
    return found


def main(m: Annotated[int, typer.Option(help="Rows.")] = 512, k: Annotated[int, typer.Option(help="Width.")] = 256,
         v: Annotated[int, typer.Option(help="Classes.")] = 32768,
         out: Annotated[Path | None, typer.Option(help="Write the table to this file, as Markdown.")] = None,
         ) -> None:  # fmt: skip
    """Peak memory of the loss and its gradient, of one op and of two layers."""
    if min(m, k, v) < 1:
        raise typer.BadParameter(f"sizes are M={m} K={k} V={v}, wanted 1 or more")
    rows = [(side, label, peak) for side in installed() for label, peak in measured(side, m, k, v).items()]
    title = f"float32, M = {m}, K = {k}, V = {v}: logits of {_mb(FLOAT * m * v)}"
    table = Table("side", "loss and gradient of h and w", "peak", "formula", title=title)
    lines = [f"# {title}", "", "| side | loss and gradient of h and w | peak | formula |", "|---|---|---:|---:|"]
    for side, label, peak in rows:
        wanted = _mb(formula(side, m, k, v)) if label.endswith(OP) else ""
        table.add_row(side, label, _mb(peak), wanted)
        lines.append(f"| {side} | {label} | {_mb(peak)} | {wanted} |")
    Console().print(table)
    lines += [
        "", "Most memory in use at once beyond the inputs, the gradients of h and w in it: torch's allocations, jax's",
        "plan of the compiled program.", "",
        f"`python benchmarks/logits_memory.py --m {m} --k {k} --v {v}` on {stamp(describe())}", "",
    ]  # fmt: skip
    if out is not None:
        write_whole(out, "\n".join(lines))


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    typer.run(main)
