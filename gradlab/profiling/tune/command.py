"""`gradlab tune`: measures rows of the table of tiles on this machine's GPU, or says what it would measure."""

import importlib
import math
import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from gradlab.autodiff.arguments.errors import FLOATS
from gradlab.autodiff.frameworks.side import side
from gradlab.base.exit_codes import INTERRUPTED, OK
from gradlab.base.machine import describe
from gradlab.base.terminal import print_line
from gradlab.kernels.configs.tiles import PACKAGED, Row, default_file, trying, users_file
from gradlab.kernels.spec import Case, Spec, spec
from gradlab.profiling.bench.worker import cases as timed
from gradlab.profiling.machine_code.gpus import DEFAULT_GPUS, GPU, GPUS, gpu
from gradlab.profiling.machine_code.targets import TARGETS, Target
from gradlab.profiling.tune.candidates import words
from gradlab.profiling.tune.file import check, save
from gradlab.profiling.tune.measure import Job, Measured, measured
from gradlab.profiling.tune.predict import Predictor
from gradlab.profiling.tune.report import NOTES, show
from gradlab.profiling.tune.survey import Survey, survey

ARCHS = tuple(t.name for t in TARGETS.values() if t.backend == "cuda")
# The share of the time for compiling and the model, where something is measured too; most rows that are.
_SURVEY, _MOST = 0.4, 12
# The share of the measuring time for the best once more: of many, the one that looks best does so by luck too.
_AGAIN = 0.3


@dataclass(frozen=True)
class TuneArgs:
    """The arguments of the command line, not yet validated."""

    op: str
    dtype: str = "bfloat16"
    case: str | None = None
    limit: float = 300.0
    dry_run: bool = False
    arch: str | None = None
    gpu: str | None = None
    to: Path | None = None
    packaged: bool = False


@dataclass(frozen=True)
class Place:
    """What rows are for.

    Attributes:
        names: by which launches look for a row: the GPU's own first; in a dry run the architecture's alone.
        model: whose numbers the model has.
    """

    names: tuple[str, ...]
    where: Target
    model: GPU


def tune(args: TuneArgs, console: Console) -> int:
    """Try, measure, print, and write what is faster, a kind of kernel after the other.

    Returns:
        0; 130 when interrupted: what was finished is printed and written.

    Raises:
        ValueError: an unknown op, dtype, case, architecture or GPU, an op that takes no tiles, a limit that is not
            positive, no GPU, a file that cannot be read or written.
        ModuleNotFoundError: torch, Triton or one of its tools is not installed.
    """
    start, op = time.monotonic(), spec(args.op)
    if args.dtype not in FLOATS:
        raise ValueError(f"tune: dtype is {args.dtype!r}, wanted one of {', '.join(FLOATS)}")
    if not 0 < args.limit < math.inf:
        raise ValueError(f"tune: limit is {args.limit}, wanted a number of seconds above 0")
    chosen, file, place = _cases(op, args.case), _file(args), _place(args)
    if not args.dry_run:
        check(file)
    job = Job(op, chosen, side("torch"), args.dtype, secrets.randbits(32))
    predictor = Predictor(op, chosen, args.dtype, place.where, place.model)
    rows = predictor.rows(place.names, args.dtype)
    if not rows:
        raise ValueError(f"tune: op is {op.name}, wanted one whose kernels take rows of the table of tiles")
    with ExitStack() as better:
        for n, row in enumerate(rows):
            kind = row.kernel
            share = (start + args.limit - time.monotonic()) / (len(rows) - n)
            tried, new, complete = Survey([]), None, False
            found: list[Measured] = []
            try:
                with console.status(f"{kind}: compiling"):
                    survey(predictor, row, share * (1 if args.dry_run else _SURVEY), tried)
                if not args.dry_run:
                    with console.status(f"{kind}: measuring"):
                        new = fastest(job, tried, share * (1 - _SURVEY), found)
                complete = True
            except KeyboardInterrupt:
                pass
            if tried.tried:
                cases = ", ".join(case.name for case in chosen)
                show(f"{kind} in {op.name}, {args.dtype}, {place.names[0]}; {cases}", tried, found, console)
            if not complete:
                print_line(console, f"interrupted: {n} of {len(rows)} kinds are finished", "bold red")
                return INTERRUPTED
            if new is not None:
                print_line(console, f"{kind}: {words(new.row)}, {1 / new.mean:.2f} times as fast as {words(row)}")
                save(file, replace(new.row, on=place.names[:1], reason=_reason(place.names[0], row, new)))
                print_line(console, f"it is in {file}" + ("" if _in_use(file) else ", which GRADLAB_TILES has to name"))
                better.enter_context(trying(new.row))
            elif not args.dry_run:
                print_line(console, f"{kind}: {words(row)} stays, nothing is faster beyond the noise")
    console.print(NOTES, style="dim", highlight=False)
    return OK


def fastest(job: Job, tried: Survey, seconds: float, found: list[Measured]) -> Measured | None:
    """The row that is faster than the one in use, beyond the noise, in a second measurement of these two alone."""
    base = tried.tried[0].row
    rows = [one.row for one in tried.ranked() if not one.dropped and one.row is not base][:_MOST]
    if not rows:
        return None
    found += measured(job, base, rows, (1 - _AGAIN) * seconds)
    best = min(found, key=lambda one: one.mean)
    if best.problem or best.mean >= 1:
        return None
    (again,) = measured(job, base, [best.row], _AGAIN * seconds)
    return again if again.better else None


def _place(args: TuneArgs) -> Place:
    if args.dry_run:
        on = gpu(args.gpu, "tune") if args.gpu else None
        arch = args.arch or (on.arch if on else "sm_90")
        if arch not in ARCHS:
            raise ValueError(f"tune: arch is {arch!r}, wanted one of {', '.join(ARCHS)}")
        where = TARGETS[arch]
        if on is not None and on.arch != where.name:
            raise ValueError(f"tune: gpu is {on.name} of {on.arch}, wanted a GPU of {where.name}")
        return Place((where.name,), where, on or GPUS[DEFAULT_GPUS[where.name]])
    for name, given in (("arch", args.arch), ("gpu", args.gpu)):
        if given is not None:
            raise ValueError(
                f"tune: {name} is {given!r}, wanted none without --dry-run: rows are for this machine's GPU"
            )
    side("torch")
    found = importlib.import_module("gradlab.profiling.tune.device_torch").gpu()
    if found is None:
        raise ValueError("tune: device is no GPU of CUDA, wanted one, or --dry-run, which measures nothing")
    name, arch = found
    if arch not in ARCHS:
        raise ValueError(f"tune: {name} is of {arch}, wanted a GPU of {', '.join(ARCHS)}")
    return Place((name, arch), TARGETS[arch], _named(name, arch))


def _named(name: str, arch: str) -> GPU:
    """The GPU of the model that a device's name says most words of: "NVIDIA H100 PCIe" is H100-PCIe."""
    words = name.lower().split()
    alike = [g for g in GPUS.values() if g.arch == arch and set(g.name.lower().split("-")) <= set(words)]
    return max(alike, key=lambda g: len(g.name), default=GPUS[DEFAULT_GPUS[arch]])


def _cases(op: Spec, name: str | None) -> tuple[Case, ...]:
    if name is None:
        return timed(op, "cuda")
    found = tuple(case for case in op.cases if case.name == name)
    if not found:
        raise ValueError(f"tune: case is {name!r}, wanted one of {', '.join(case.name for case in op.cases)}")
    return found


def _file(args: TuneArgs) -> Path:
    if args.packaged and args.to is not None:
        raise ValueError("tune: --packaged came with --to, wanted one of them")
    return PACKAGED if args.packaged else args.to or users_file() or default_file()


def _in_use(file: Path) -> bool:
    own = users_file()
    return file == PACKAGED or (own is not None and file.resolve() == own.resolve())


def _reason(name: str, before: Row, new: Measured) -> str:
    machine = describe()
    versions = ", ".join(f"{package} {machine[package]}" for package in ("torch", "triton") if package in machine)
    date = machine["date"].split()[0]
    return f"measured on {name}, {versions}, {date}: {1 / new.mean:.2f} times as fast as {words(before)}"
