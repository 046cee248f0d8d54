"""The command `gradlab`: what is said on the command line. Each command imports what it needs when it runs."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import gradlab
from gradlab.autodiff.frameworks.side import SIDES, known, selected
from gradlab.base.exit_codes import UNUSABLE
from gradlab.kernels.spec import spec, specs

app = typer.Typer(
    name="gradlab",
    help=gradlab.__doc__,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Op = Annotated[str | None, typer.Argument(help=f"One of {', '.join(specs())}; all of them when not given.")]
SideOption = Annotated[
    list[str] | None, typer.Option("--side", help=f"{' or '.join(SIDES)}; may be given twice. All that are installed.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of every random number.")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"gradlab {gradlab.__version__}")
        raise typer.Exit


@app.command()
def check(
    target: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(specs())}, or FILE.py::function; all ops when not given.")
    ] = None,
    side: SideOption = None,
    order: Annotated[int | None, typer.Option(min=1, max=2)] = None,
    seed: Seed = 0,
    shapes: Annotated[
        str | None, typer.Option(help='Arguments of FILE.py::function: "x[3 4], w[4 5], t[3]: int<5".')
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help='Other axis lengths of FILE.py::function, too: "128: 127 129, x[0]: 1 257".')
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="float32, float16 or bfloat16, judged against float64; may be given more than once."),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help="derivative, facts, contract, second, precision, edges or reference; all when not given."),
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Hold torch.compile against eager too.")] = False,
    budget: Annotated[float | None, typer.Option(min=0.01, help="Seconds, in all.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write every finding to this file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw error against step, and the map of errors.")] = None,
    sanitize: Annotated[
        bool, typer.Option("--sanitize", help="Examine what every Triton kernel that is called does to memory.")
    ] = False,
) -> None:
    """Hold gradients against finite differences, and functions to what their framework asks of them."""
    from gradlab.autodiff.checker import command

    args = command.CheckArgs(target, side or [], order, seed, shapes, sizes, dtype, part, compile, budget, json, plot)
    if not sanitize:
        raise typer.Exit(command.check(args, Console()))
    with gradlab.sanitize(raises=False) as report:
        code = command.check(args, Console())
    print(f"\ngradlab sanitize: {report}")
    raise typer.Exit(code or int(bool(report.faults)))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
def sanitize(
    context: typer.Context,
    script: Annotated[Path, typer.Argument(help="A Python script; what follows is its own arguments.")],
    first: Annotated[bool, typer.Option("--first", help="Stop at the first fault.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write every fault to this file.")] = None,
) -> None:
    """Run a script and examine what its Triton kernels do to memory, on a CPU: exit code 1 and a paragraph a fault."""
    from gradlab.profiling.sanitize import command

    raise typer.Exit(command.sanitize(script, context.args, first, json))


@app.command()
def bench(
    op: Op = None,
    side: SideOption = None,
    dtype: Annotated[str, typer.Option(help="float64, float32, float16 or bfloat16.")] = "float32",
    case: Annotated[str | None, typer.Option(help="One case of the op; all when not given.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="eager or compiled; both when not given.")] = None,
    way: Annotated[
        list[str] | None, typer.Option("--pass", help="forward, backward or forward+backward; all when not given.")
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Time against size: the largest case and down.")] = False,
    budget: Annotated[float, typer.Option(min=0.01, help="Seconds of timing a group.")] = 1.0,
    sizes: Annotated[str, typer.Option(help='Other sizes of the op\'s largest case: "M=512 K=64".')] = "",
    seed: Annotated[int | None, typer.Option(min=0, help="Of the inputs; else a fresh one.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write raw samples and the machine to this file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a line a member to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a table with the machine to this file.")] = None,
    compare: Annotated[
        Path | None, typer.Option(help="An earlier --json: exit code 1 when slower than there beyond the noise.")
    ] = None,
) -> None:
    """Time hand-written against native and peers, in turns: eager and compiled, forward and backward, with ceilings."""
    from gradlab.profiling.bench.command import Command, run

    args = Command(
        (spec(op).name,) if op else (),
        selected(side),
        dtype,
        tuple(mode or ()),
        tuple(way or ()),
        case,
        budget,
        seed,
        sweep,
        sizes,
        json,
        csv,
        markdown,
        compare,
    )
    raise typer.Exit(run(args, Console()))


@app.command()
def inspect(
    op: Annotated[
        str | None,
        typer.Argument(
            help=f"One of {', '.join(specs())}, all of them when not given; or FILE.py::function, for the Triton "
            "kernels that a function of torch tensors launches."
        ),
    ] = None,
    side: SideOption = None,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            help="sm_80, sm_86, sm_89, sm_90, sm_100, gfx942, with commas between; sm_90 when not given. This CPU: "
            "native; others: x86-64-v3, sapphirerapids, neoverse-v2."
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            help="float64, float32, float16, bfloat16, with commas between; bfloat16 when not given, float32 for CPUs."
        ),
    ] = None,
    case: Annotated[str | None, typer.Option(help="A case of the op; its largest when not given.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Whose waves and floor: A100, H100, H200, B200, ...")] = None,
    lines: Annotated[bool, typer.Option("--lines", help="Each line's instructions beside it.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write every number to this file.")] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Check every kernel's codegen bounds: on sm_80 and sm_90, in float32 and bfloat16, or as given.",
        ),
    ] = False,
    shapes: Annotated[
        str | None,
        typer.Option(
            help='Arguments of a function: "x[4096 1024], t[4096]: int<10"; <function>_args in its file when not given.'
        ),
    ] = None,
) -> None:
    """Compile the kernels and read their machine code: registers, spills, occupancy, instructions. Needs no GPU."""
    from gradlab.profiling.machine_code import command

    args = command.InspectArgs(op, side or [], arch, dtype, case, gpu, lines, json, check, shapes)
    raise typer.Exit(command.inspect(args, Console()))


@app.command()
def report(
    op: Op = None,
    side: SideOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="A part of everything: a few minutes.")] = False,
    train: Annotated[bool, typer.Option("--train", help="The demo's training too.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("report"),
) -> None:
    """Check, inspect and time every op, and write one page to look at: report/report.html."""
    from gradlab.profiling.report.command import ReportArgs, run
    from gradlab.workloads.demonstration import trained

    args = ReportArgs((spec(op).name,) if op else (), selected(side), quick, out, trained if train else None)
    raise typer.Exit(run(args, Console()))


@app.command()
def profile(
    target: Annotated[
        str, typer.Argument(help=f"One of {', '.join(specs())}, or a workload that `gradlab train` lists.")
    ],
    side: SideOption = None,
    mode: Annotated[
        str | None, typer.Option(help="eager or compile on torch, jit or eager on jax; eager and jit when not given.")
    ] = None,
    tool: Annotated[str, typer.Option(help="trace, nsys, ncu, or auto: what the machine has.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for what is written; profile/NAME.")] = None,
    case: Annotated[str | None, typer.Option(help="A case of the op by name; its first timed one.")] = None,
) -> None:
    """Show where the time goes: per op and kernel, by a trace of both sides on one clock, by nsys or by ncu."""
    from gradlab.profiling.trace import command, op
    from gradlab.profiling.trace.args import checked_args
    from gradlab.workloads import catalogue, profiled

    names = op.cases(spec(target)) if target in specs() else ()
    if not names and target not in catalogue.WORKLOADS:
        every = ", ".join((*specs(), *catalogue.WORKLOADS))
        raise ValueError(f"profile: target is {target!r}, wanted an op or a workload: {every}")
    request = checked_args(target, side, mode, tool, out, case, names)
    if not names:
        profiled.refuse(target, request.modes)
    module = (op if names else profiled).__name__
    raise typer.Exit(command.profile(request, module, Console()))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the plot and the table.")] = Path("demo"),
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    seed: Seed = 0,
    side: SideOption = None,
) -> None:
    """Train one network four times, torch and jax, hand-written and native, and compare the curves."""
    train("digits-cnn", side=side, compare=True, out=out, epochs=epochs, seed=seed)


@app.command()
def train(
    name: Annotated[str | None, typer.Argument(help="A workload; a table of them when not given.")] = None,
    side: Annotated[
        list[str] | None, typer.Option(help="torch or jax: the first that is installed, or with --compare both.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="gradlab or native; gradlab when not given.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="All sides and layers, side by side.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of --compare; else the workload's name.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data file or folder, where a workload needs one.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adam, or sgd with momentum 0.9.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32, bf16 or fp16; weights stay float32.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights, data and batches.")] = None,
    save: Annotated[Path | None, typer.Option(help="Keep weights, optimizer and curve in this file.")] = None,
    load: Annotated[Path | None, typer.Option(help="Start from the weights in this file of either side.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this file.")] = None,
) -> None:
    """Train a workload on one side, hand-written or native; with --compare on all, and compare the curves."""
    from gradlab.workloads import command

    args = command.TrainArgs(
        name, tuple(known(s) for s in side or ()), layers, data, epochs, batch_size, lr, optimizer, precision, seed
    )
    raise typer.Exit(command.train(args, compare, out, save, load, resume))


@app.command()
def convert_weights(
    source: Annotated[Path, typer.Argument(help="A safetensors file of torch's or jax's names.")],
    target: Annotated[Path, typer.Argument(help="The file to write, of the other side.")],
) -> None:
    """Turn weights between torch (.weight, out by in) and jax (.kernel, in by out): names and axes, no values."""
    from gradlab.workloads import command

    raise typer.Exit(command.convert_weights(source, target))


def main() -> None:
    """Run the command; an error of the user's is one line on stderr and exit code 2."""
    try:
        app()
    except (ValueError, TypeError, IndexError, ModuleNotFoundError) as error:
        print(f"gradlab: {error}", file=sys.stderr)
        sys.exit(UNUSABLE)
