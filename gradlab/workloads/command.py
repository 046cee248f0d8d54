"""`gradlab train` and `gradlab convert-weights`: validates the arguments and runs the plan."""

import importlib
import os
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

from rich import box
from rich.console import Console
from rich.table import Table

from gradlab.autodiff.frameworks.side import SIDES, installed
from gradlab.base.exit_codes import OK, UNUSABLE
from gradlab.base.terminal import print_line
from gradlab.workloads import checkpoint
from gradlab.workloads.catalogue import WORKLOADS, workload
from gradlab.workloads.compare import compare, not_installed
from gradlab.workloads.ranks import Ranks, SpreadArgs
from gradlab.workloads.train import load_run
from gradlab.workloads.train import train as train_one
from gradlab.workloads.training import NEEDS, TrainingPlan, missing
from gradlab.workloads.workload import LAYERS, PRECISIONS, Layers, Optimizer
from gradlab.workloads.world import torchrun


class TrainArgs(NamedTuple):
    """The arguments of the command line; None where not given."""

    name: str | None = None
    sides: tuple[str, ...] = ()
    layers: str | None = None
    data: Path | None = None
    epochs: int | None = None
    batch: int | None = None
    lr: float | None = None
    optimizer: str | None = None
    precision: str | None = None
    seed: int | None = None


# Optional modules that data and files need -> their names for pip.
TOOLS = {"sklearn": "scikit-learn", "safetensors": "safetensors", "matplotlib": "matplotlib"}


def train(
    args: TrainArgs,
    both: bool = False,
    out: Path | None = None,
    save: Path | None = None,
    load: Path | None = None,
    resume: Path | None = None,
    spread: SpreadArgs = SpreadArgs(),  # noqa: B008 - a tuple
) -> int:
    """Train as args, on all processes that torchrun started: an exit code.

    Raises:
        ValueError: unknown or conflicting arguments, data or a file that cannot be read.
    """
    files = _Files(out, save, load, resume)
    try:
        world = torchrun(spread.fsdp)
        if spread.on_jax:
            if world is not None or "torch" in args.sides:
                raise ValueError(
                    f"train: {spread.words} is given for torch, wanted --side jax, or torchrun -m gradlab train ..."
                )
            gone = _needs("jax")
            together = importlib.import_module("gradlab.workloads.ranks_jax").together
            return gone or together(spread, lambda ranks: _train(args, both, files, ranks))
        if world is None:
            if spread.fsdp:
                start = "torchrun --nproc-per-node N -m gradlab train ... --fsdp, or --devices N on jax"
                raise ValueError(f"train: --fsdp is given to a process that is alone, wanted {start}")
            return _train(args, both, files, None)
        # Before torch is imported: its C++ warnings of a process that is gone are pages of frames around one line.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        together = importlib.import_module("gradlab.workloads.ranks_torch").together
        return together(world, spread.timeout, lambda ranks: _train(args, both, files, ranks))
    except ModuleNotFoundError as error:
        return _missing_tool(error)


class _Files(NamedTuple):
    out: Path | None
    save: Path | None
    load: Path | None
    resume: Path | None


def _train(args: TrainArgs, both: bool, files: _Files, ranks: Ranks | None) -> int:
    out, save, load, resume = files
    _choice("layers", args.layers, LAYERS)
    _choice("precision", args.precision, PRECISIONS)
    _choice("optimizer", args.optimizer, get_args(Optimizer.__annotations__["kind"]))
    if args.lr is not None and not args.lr > 0:
        raise ValueError(f"train: lr is {args.lr:g}, wanted a positive number")
    if args.seed is not None and not args.seed < 2**32:
        raise ValueError(f"train: seed is {args.seed}, wanted 0 to 2^32 - 1")
    if ranks is not None:
        _want_one_side(args, both, resume is not None and save is None and resume.is_file(), ranks.side)
        if ranks.saved:
            # Started again after a process was lost: from the first step on, the run would write over what it has.
            load, resume = None, Path(ranks.saved)
    if both:
        clash = {"--layers": args.layers, "--save": save, "--load": load, "--resume": resume}
        for word, value in clash.items():
            if value is not None:
                raise ValueError(
                    f"train: {word} is {value}, wanted none beside --compare, which runs all from one start"
                )
        if args.name is None:
            raise ValueError(f"train: the workload is missing, wanted one of {', '.join(WORKLOADS)}")
        plan = _plan(args, "torch")
        return compare(plan, Path(plan.name) if out is None else out, args.sides or SIDES)
    if out is not None:
        raise ValueError(f"train: --out is {out}, wanted none without --compare; --save takes a file")
    if resume is not None:
        if load is not None:
            raise ValueError(f"train: --load is {load}, wanted none beside --resume")
        given = args._asdict() | {"side": _one(args.sides), "path": args.data}
        del given["sides"], given["data"], given["lr"], given["optimizer"]
        plan, state = load_run(resume, given)
        if args.lr is not None or args.optimizer is not None:
            _same(resume, plan, _optimizer(args, plan.optimizer))
        if ranks is not None and plan.side != ranks.side:
            raise ValueError(f"train: side of {resume} is {plan.side}, wanted {ranks.side} {_STARTED[ranks.side]}")
        return _needs(plan.side) or train_one(plan, save or resume, state=state, ranks=ranks)
    if args.name is None:
        if ranks is None or ranks.world.leads:
            _list()
        return OK
    side = _one(args.sides) or (ranks.side if ranks is not None else next(iter(installed()), "torch"))
    return _needs(side) or train_one(_plan(args, side), save, load, ranks=ranks)


def convert_weights(source: Path, target: Path) -> int:
    """Write `source`, of one side, as `target`, of the other: an exit code.

    Raises:
        ValueError: no such file, or no weights of one side.
    """
    try:
        side = checkpoint.convert(source, target)
    except ModuleNotFoundError as error:
        return _missing_tool(error)
    except OSError as error:
        print_line(Console(stderr=True), f"cannot write {target}: {error.strerror or error}")
        return UNUSABLE
    print_line(Console(), f"{target} holds the weights of {source} in the layout of {side}")
    return OK


# What joined the processes or devices of a run on each side.
_STARTED = {"torch": "under torchrun", "jax": "with --devices"}


def _want_one_side(args: TrainArgs, both: bool, file: bool, side: str) -> None:
    """Refuse what processes or devices do not do together."""
    if both:
        raise ValueError(f"train: --compare is given {_STARTED[side]}, wanted one process, which starts its own")
    if side == "torch" and "jax" in args.sides:
        raise ValueError("train: --side is jax under torchrun, wanted torch: jax is started with --devices")
    if file:
        raise ValueError("train: --save is missing, wanted a folder, as --resume names a file of one process")


def _plan(args: TrainArgs, side: str) -> TrainingPlan:
    chosen = workload(str(args.name))
    return TrainingPlan(
        chosen.name,
        side,
        cast(Layers, args.layers or "gradlab"),
        args.precision or "float32",
        _optimizer(args, chosen.optimizer),
        args.batch or chosen.batch,
        args.epochs or chosen.epochs,
        args.seed or 0,
        args.data,
    )


def _optimizer(args: TrainArgs, default: Optimizer) -> Optimizer:
    if args.optimizer is not None and args.optimizer != default.kind:
        default = Optimizer("adam", 1e-3) if args.optimizer == "adam" else Optimizer("sgd", 0.05, 0.9)
    return default if args.lr is None else default._replace(lr=args.lr)


def _choice(word: str, came: str | None, choices: tuple[str, ...]) -> None:
    if came is not None and came not in choices:
        raise ValueError(f"train: {word} is {came!r}, wanted one of {', '.join(choices)}")


def _one(sides: tuple[str, ...]) -> str | None:
    if len(sides) > 1:
        raise ValueError(f"train: --side is {' and '.join(sides)}, wanted one; --compare takes both")
    return sides[0] if sides else None


def _same(path: Path, plan: TrainingPlan, optimizer: Optimizer) -> None:
    if optimizer != plan.optimizer:
        raise checkpoint.CheckpointError(f"{path}: its optimizer is {plan.optimizer}, wanted {optimizer}")


def _needs(side: str) -> int:
    gone = missing(NEEDS[side])
    if gone:
        print_line(Console(stderr=True), f"{not_installed(gone)} 'gradlab[{side}]'")
    return UNUSABLE if gone else OK


def _missing_tool(error: ModuleNotFoundError) -> int:
    """One line for an optional module that is not installed; any other missing module is a bug."""
    name = (error.name or "").partition(".")[0]
    if name not in TOOLS:
        raise error
    print_line(Console(stderr=True), f"{not_installed([TOOLS[name]])} 'gradlab[demo]'")
    return UNUSABLE


def _list() -> None:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("workload", "network", "loss", "optimizer", "--data"):
        table.add_column(column)
    for one in WORKLOADS.values():
        words: tuple[Any, ...] = (
            one.name,
            one.network,
            one.loss,
            one.optimizer,
            one.file.partition(" with ")[0] or "not needed",
        )
        table.add_row(*map(str, words))
    Console().print(table)
