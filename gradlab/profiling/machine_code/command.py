"""`gradlab inspect`: compiles and reads kernels for the arguments of the command line, prints and writes them."""

import importlib
import json as to_json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gradlab.autodiff.arguments.errors import FLOATS
from gradlab.autodiff.checker.target import load
from gradlab.autodiff.frameworks.side import installed
from gradlab.base.exit_codes import FOUND, INTERRUPTED, OK
from gradlab.base.files import write_whole
from gradlab.base.machine import describe
from gradlab.kernels.spec import spec, specs
from gradlab.profiling.machine_code import peers, report_peers
from gradlab.profiling.machine_code.bounds import Verdict, hold, subjects
from gradlab.profiling.machine_code.code import Code
from gradlab.profiling.machine_code.gpus import gpu
from gradlab.profiling.machine_code.inspection import InspectRequest, InspectSubject, choose, function, read, targets
from gradlab.profiling.machine_code.peers import Compared, PeerRow, compared
from gradlab.profiling.machine_code.report import show, show_verdicts
from gradlab.profiling.machine_code.targets import CPU, CPUS

# Increased when a key is removed or changes its meaning, not for a new key.
SCHEMA = 1


@dataclass(frozen=True)
class InspectArgs:
    """The arguments of the command line, not yet validated; architectures and dtypes may be lists with commas."""

    op: str | None
    sides: Sequence[str]
    archs: Sequence[str] | None
    dtypes: Sequence[str] | None
    case: str | None
    gpu: str | None
    lines: bool
    json: Path | None
    check: bool
    shapes: str | None = None
    executed: bool = False
    peers: bool = False


def inspect(args: InspectArgs, console: Console) -> int:
    """Compile, read, print; with `check`, check the Specs' codegen bounds.

    Returns:
        0; 1 when a kernel does not compile or a bound is broken; 130 when interrupted, the finished rows printed
        and written.

    Raises:
        ValueError: an unknown op, side, architecture, dtype, case or GPU; a file that cannot be written.
        ModuleNotFoundError: a side, Triton or one of its tools is not installed.
    """
    own = args.op is not None and "::" in args.op
    if args.peers:
        return _peers(args, console)
    ops = [] if own else [spec(args.op)] if args.op is not None else list(specs().values())
    sides = split(args.sides)
    if args.json is not None:
        _writable(args.json)
    if args.check and (args.case or args.gpu or args.lines or args.executed):
        raise ValueError(
            "inspect: --check came with --case, --gpu, --lines or --executed, wanted none of them: the bounds name "
            "their cases"
        )
    if args.shapes is not None and not own:
        raise ValueError(
            "inspect: --shapes came with an op, wanted FILE.py::function: an op has the sizes of its cases"
        )
    if own:
        there = targets(_archs(args), args.gpu)
        wanted = InspectRequest((_function(args),), there, args.gpu, None, args.lines, args.executed)
    elif args.check:
        dtypes = split(args.dtypes) or ["float32", "bfloat16"]
        there = targets(split(args.archs) or ["sm_80", "sm_90"], None)
        wanted = InspectRequest(subjects(ops, sides or None, dtypes, [t.name for t in there]), there, size=False)
    else:
        archs = _archs(args)
        default = "float32" if set(archs) <= set(CPUS) else "bfloat16"
        chosen = choose(ops, sides or None, split(args.dtypes) or [default], args.case)
        wanted = InspectRequest(chosen, targets(archs, args.gpu), args.gpu, None, args.lines, args.executed)
    bounded = {arch for op in ops for bound in op.bounds for arch in bound.archs}
    if args.check and not any(t.name in bounded for t in wanted.targets):
        names = ", ".join(t.name for t in wanted.targets)
        raise ValueError(f"inspect: no Spec has a bound for {names}, wanted one of {', '.join(sorted(bounded))}")
    codes: list[Code] = []
    complete = False
    try:
        for code in _watched(wanted, console, codes):
            codes.append(code)
        complete = True
    except KeyboardInterrupt:
        pass
    if not args.check:
        show(codes, console, args.lines)
        if any(code.inner for code in codes) and not own and "jax" in (sides or installed()):
            console.print("jax: no rows on a CPU, where its kernels are XLA's code", style="dim", highlight=False)
    verdicts = hold(ops, sides or installed(), codes) if args.check and complete else []
    if args.check and complete:
        show_verdicts(verdicts, console)
    if args.json is not None:
        write_json(args.json, codes, verdicts, complete)
    if not complete:
        console.print(f"interrupted: {len(codes)} kernels read", style="bold red", highlight=False)
        return INTERRUPTED
    if not codes:
        on_cpu = all(isinstance(t, CPU) for t in wanted.targets)
        why = "on a CPU jax's kernels are XLA's code" if on_cpu else "jax's kernels are lowered for CUDA"
        raise ValueError(f"inspect: nothing to compile: {why}, wanted {'--side torch or ' * on_cpu}an sm_ architecture")
    return FOUND if any(v.broken for v in verdicts) or any(c.error for c in codes) else OK


def _peers(args: InspectArgs, console: Console) -> int:
    """The lab's kernels beside those of others, case by case; what was finished is written when it is interrupted."""
    alone = {"--side": args.sides, "--case": args.case, "--check": args.check, "--lines": args.lines}
    alone |= {"--executed": args.executed, "--shapes": args.shapes}
    others = [name for name, value in alone.items() if value]
    (dtype, *more), (where, *further) = split(args.dtypes) or ["bfloat16"], targets(_archs(args), args.gpu)
    if others or more or further or where.backend != "cuda" or dtype not in FLOATS:
        came = ", ".join(others) or (f"dtype {dtype}" if dtype not in FLOATS else f"{where.name}, or several of a kind")
        raise ValueError(f"inspect: --peers came with {came}, wanted an op, one dtype and one sm_ architecture alone")
    if args.json is not None:
        _writable(args.json)
    found: list[tuple[Compared, list[PeerRow]]] = []
    status = OK
    try:
        for wanted in compared(args.op):
            rows = list(peers.rows(wanted, dtype, where, args.gpu))
            found.append((wanted, rows))
            report_peers.show(wanted, rows, dtype, where.name, console)
            if any(row.code is not None and row.code.error for row in rows):
                status = FOUND
    except KeyboardInterrupt:
        status = INTERRUPTED
    console.print(report_peers.NOTES, style="dim", highlight=False)
    if args.json is not None:
        report_peers.write_json(args.json, found, dtype, where.name)
    if status == INTERRUPTED:
        console.print(f"interrupted: {len(found)} cases read", style="bold red", highlight=False)
    return status


def _function(args: InspectArgs) -> InspectSubject:
    """`FILE.py::function` on arrays of its own, or drawn ones of these shapes."""
    if args.check or args.case or split(args.sides) not in ([], ["torch"]) or len(split(args.dtypes)) > 1:
        raise ValueError(
            "inspect: FILE.py::function came with --check, --case, --side jax or several --dtype, wanted none of them"
        )
    try:
        target = load(args.op or "", args.shapes, "torch", 0)
    except ValueError as error:
        raise ValueError(f"inspect: {str(error).removeprefix('check: ')}") from error
    own = importlib.import_module("gradlab.profiling.machine_code.own_torch")
    (dtype,) = split(args.dtypes) or ["float32"]
    if dtype not in FLOATS:
        raise ValueError(f"inspect: dtype is {dtype!r}, wanted one of {', '.join(FLOATS)}")
    fn = own.launching(target.fn, (args.op or "").partition("::")[2], "inspect")
    return function(fn, target.args if args.shapes is None else own.drawn(target.args, dtype))


def write_json(path: Path, codes: Sequence[Code], verdicts: Sequence[Verdict], complete: bool) -> None:
    """The kernels read so far, a row a line; `complete` says whether all requested kernels are in it."""
    head = {"schema": SCHEMA, "machine": describe(), "complete": complete}
    rows = ",\n".join(f"  {to_json.dumps(code.as_json())}" for code in codes)
    checked = ",\n".join(f"  {to_json.dumps(_plain(verdict))}" for verdict in verdicts)
    text = to_json.dumps(head, indent=1)[:-2]
    write_whole(path, f'{text},\n "kernels": [\n{rows}\n ],\n "bounds": [\n{checked}\n ]\n}}\n')


def split(words: Sequence[str] | None) -> list[str]:
    """`["sm_80,sm_90", "sm_100"]` as three."""
    return [part.strip() for word in words or () for part in word.split(",") if part.strip()]


def _writable(path: Path) -> None:
    """Check the path before minutes of compiling."""
    if path.is_dir():
        raise ValueError(f"inspect: --json is the folder {path}, wanted a file")
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise ValueError(f"inspect: --json is {path} ({error.strerror}), wanted a file that can be written") from None


def _archs(args: InspectArgs) -> list[str]:
    return split(args.archs) or [gpu(args.gpu).arch if args.gpu else "sm_90"]


def _watched(wanted: InspectRequest, console: Console, sofar: Sequence[Code]) -> Iterator[Code]:
    """The kernels as they come, with what is being done on the terminal while it lasts."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("compiling")
        for code in read(wanted):
            words = f"{len(sofar) + 1} kernels; {code.op} on {code.side}, {code.name}, {code.dtype}, {code.arch}"
            progress.update(task, description=words)
            yield code


def _plain(verdict: Verdict) -> dict:
    return {
        "op": verdict.op,
        "side": verdict.side,
        "bound": str(verdict.bound),
        "fact": verdict.bound.fact,
        "kernels": list(verdict.bound.kernels),
        "checked": verdict.checked,
        "extreme": verdict.extreme,
        "broken": list(verdict.broken),
    }
