"""The written pages that follow from the specs: the table of ops and one page an op. `make docs` writes them."""

import inspect
import re
import sys
from pathlib import Path

from gradlab.autodiff.checker.check import check
from gradlab.autodiff.frameworks.side import installed
from gradlab.base.files import write_whole
from gradlab.base.machine import describe, stamp
from gradlab.kernels.spec import Spec, specs

START, END = "<!-- ops: written by `make docs` -->", "<!-- /ops -->"


def table() -> str:
    """Every op with its shapes, cost and rule, in Markdown."""
    lines = [
        "| op | formula | shapes | forward, backward FLOPs | minimum bytes | saved for backward | derivatives |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, op in specs().items():
        case = op.cases[-1]
        flops, least = op.at(case).flops(), op.at(case).bytes("float32")
        sizes = " ".join(f"{axis}={n}" for axis, n in case.sizes.items())
        orders = "first" if op.order == 1 else "every order" if op.order > 2 else "first and second"
        lines.append(
            f"| [{name}]({name}.md) | `{op.formula}` | `{op.signature}` "
            f"| {_short(flops['forward'])}, {_short(flops['backward'])} at {sizes} "
            f"| {_short(least['forward'])}B, {_short(least['backward'])}B | {op.saved} | {orders} |"
        )
    return "\n".join(lines)


def with_table(text: str) -> str:
    """The text of docs/ops.md with today's table put between its marks.

    Raises:
        ValueError: the marks are not there.
    """
    if START not in text or END not in text:
        raise ValueError(f"pages: docs/ops.md has no table marks, wanted {START} ... {END}")
    return re.sub(f"{re.escape(START)}.*?{re.escape(END)}", lambda _: f"{START}\n{table()}\n{END}", text, flags=re.S)


def derivation(op: Spec) -> str:
    """The op's module docstring: its mathematics, where they are stated."""
    return inspect.getdoc(sys.modules[op.reference.__module__]) or ""


def page(op: Spec) -> str:
    """The op's page: derivation, kernels, and what the check prints today on this machine."""
    report = check(op.name, raises=False)
    return f"""# {op.name}: `{op.formula}`

`{op.signature}`, on both sides: [Triton](../gradlab/kernels/{op.name}_triton.py) under
[`torch.autograd.Function`](../gradlab/autodiff/{op.name}_torch.py) and [Pallas](../gradlab/kernels/{op.name}_pallas.py)
under [`jax.custom_vjp`](../gradlab/autodiff/{op.name}_jax.py).

## Derivation

```text
{derivation(op)}
```

## Proof

`gradlab check {op.name}` ({", ".join(installed())}) printed on {stamp(describe())}:

```text
{_trimmed(str(report))}
```
"""


def write(root: Path) -> None:
    """Write the table of docs/ops.md and every op's page below `root`."""
    every = root / "docs" / "ops.md"
    write_whole(every, with_table(every.read_text()))
    for name, op in specs().items():
        write_whole(root / "docs" / f"{name}.md", page(op))


def _short(n: float) -> str:
    for unit in ("", "k", "M", "G"):
        if n < 1000:
            return f"{n:.3g} {unit}".strip()
        n /= 1000
    return f"{n:.3g} T"


def _trimmed(text: str) -> str:
    """Without the seconds, which are the machine's and not the op's."""
    lines = (line.rstrip() for line in text.splitlines() if not line.startswith("seconds:"))
    return "\n".join(lines).strip("\n")


if __name__ == "__main__":
    write(Path.cwd())
