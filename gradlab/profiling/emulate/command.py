"""`gradlab emulate`: executes kernels compiled for a GPU on this CPU, for the arguments of the command line."""

import importlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from gradlab.autodiff.arguments.errors import FLOATS
from gradlab.autodiff.checker.target import load
from gradlab.autodiff.frameworks.side import selected, side
from gradlab.base.exit_codes import FOUND, INTERRUPTED, OK
from gradlab.base.files import writable
from gradlab.kernels.spec import spec, specs
from gradlab.profiling.emulate.compare import How, function, op_case
from gradlab.profiling.emulate.executed import BUDGET
from gradlab.profiling.emulate.report import show, summary, write_json
from gradlab.profiling.emulate.result import CaseResult
from gradlab.profiling.machine_code.command import split
from gradlab.profiling.machine_code.gpus import GPU, gpu
from gradlab.profiling.machine_code.targets import TARGETS, Target
from gradlab.profiling.ptx.schedule import ORDERS

# Those whose tensor cores are executed: from sm_100 on they have memory of their own.
ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90")


@dataclass(frozen=True)
class EmulateArgs:
    """The arguments of the command line, not yet validated; sides, architectures, dtypes may be lists with commas."""

    target: str | None
    sides: Sequence[str] = ()
    archs: Sequence[str] = ()
    dtypes: Sequence[str] = ()
    case: str | None = None
    shapes: str | None = None
    second: bool = False
    order: str = "together"
    early: bool = False
    approximate: bool = False
    gpu: str | None = None
    budget: int = BUDGET
    lines: bool = False
    json: Path | None = None
    seed: int = 0


def emulate(args: EmulateArgs, console: Console) -> int:
    """Compile, execute, compare, print.

    Returns:
        0; 1 when a kernel has a fault, a result is wrong or a kernel was not executed to its end; 130 when interrupted,
        the finished cases printed and written.

    Raises:
        ValueError: an unknown op, function, side, architecture, dtype, case, order or GPU; a file that cannot be
            written.
        ModuleNotFoundError: a side or Triton is not installed.
    """
    writable("emulate", args.json)
    if args.order not in ORDERS:
        raise ValueError(f"emulate: order is {args.order!r}, wanted one of {', '.join(ORDERS)}")
    on = gpu(args.gpu, "emulate") if args.gpu else None
    if args.target is not None and args.target.endswith(".py"):
        raise ValueError(f"emulate: target is {args.target!r}, wanted {args.target}::function, or an op's name")
    hows = [_how(args, where) for where in _targets(args, on)]
    if on is not None and all(on.arch != how.where.name for how in hows):
        archs = ", ".join(how.where.name for how in hows)
        raise ValueError(f"emulate: gpu is {on.name} of {on.arch}, wanted a GPU of {archs}")
    full = args.case is not None or _own_target(args)
    done: list[CaseResult] = []
    complete = False
    try:
        for result in _results(args, hows, console):
            done.append(result)
            show(result, console, on, lines=args.lines, full=full)
        complete = True
    except KeyboardInterrupt:
        pass
    summary(done, console)
    if args.json is not None:
        write_json(args.json, done, complete, on, full)
    if not complete:
        cases = "1 case" if len(done) == 1 else f"{len(done)} cases"
        console.print(f"interrupted: {cases} executed", style="bold red", highlight=False)
        return INTERRUPTED
    return OK if all(result.ok for result in done) else FOUND


def _targets(args: EmulateArgs, on: GPU | None) -> list[Target]:
    names = split(args.archs) or [on.arch if on else "sm_90"]
    for name in names:
        if name not in ARCHS:
            raise ValueError(f"emulate: arch is {name!r}, wanted one of {', '.join(ARCHS)}")
    return [TARGETS[name] for name in names]


def _how(args: EmulateArgs, where: Target) -> How:
    return How(
        where, args.budget, {"order": args.order, "late": not args.early, "check": True, "exact": not args.approximate}
    )


def _results(args: EmulateArgs, hows: Sequence[How], console: Console) -> Iterator[CaseResult]:
    dtypes = split(args.dtypes)
    for dtype in dtypes:
        if dtype not in FLOATS:
            raise ValueError(f"emulate: dtype is {dtype!r}, wanted one of {', '.join(FLOATS)}")
    with console.status("compiling and executing"):
        if _own_target(args):
            yield from _own(args, dtypes, hows)
            return
        if args.shapes is not None:
            raise ValueError(
                "emulate: --shapes came with an op, wanted FILE.py::function: an op has the sizes of its cases"
            )
        ops = [spec(args.target)] if args.target is not None else list(specs().values())
        cases = [op.at(c) for op in ops for c in op.cases if (c.name == args.case if args.case else c.use == "check")]
        if not cases:
            names = ", ".join(c.name for op in ops for c in op.cases)
            raise ValueError(f"emulate: case is {args.case!r}, wanted one of {names}")
        sides = selected(split(args.sides) or None)
        if "torch" in sides:
            _refuse_interpreted()
        for name, how, dtype, at in itertools.product(sides, hows, dtypes or ["float32"], cases):
            yield op_case(at, name, dtype, how, args.second, args.seed)


def _refuse_interpreted() -> None:
    if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y"):
        raise ValueError("emulate: TRITON_INTERPRET is set, wanted it unset: what it interprets is not compiled")


def _own_target(args: EmulateArgs) -> bool:
    return args.target is not None and "::" in args.target


def _own(args: EmulateArgs, dtypes: Sequence[str], hows: Sequence[How]) -> Iterator[CaseResult]:
    """`FILE.py::function` or `FILE.py::kernel` on arrays of its own, or drawn ones of these shapes."""
    if args.case or args.second or split(args.sides) not in ([], ["torch"]) or len(dtypes) > 1:
        raise ValueError(
            "emulate: FILE.py::function came with --case, --second, --side jax or several --dtype, wanted none of them"
        )
    side("torch")
    _refuse_interpreted()
    try:
        target = load(args.target or "", args.shapes, "torch", args.seed)
    except ValueError as error:
        raise ValueError(f"emulate: {str(error).removeprefix('check: ')}") from error
    own: Any = importlib.import_module("gradlab.profiling.machine_code.own_torch")
    given = target.args if args.shapes is None else own.drawn(target.args, dtypes[0] if dtypes else "float32")
    name = (args.target or "").partition("::")[2]
    fn = own.launching(target.fn, name, "emulate")
    for how in hows:
        yield function(fn, given, "torch", name, own.dtype_of(given), how)
