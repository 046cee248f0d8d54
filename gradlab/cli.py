"""The command line `gradlab`. Each command imports what it needs when it runs."""

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import gradlab
from gradlab.autodiff.frameworks.side import SIDES, known, selected
from gradlab.base.exit_codes import UNUSABLE
from gradlab.kernels.spec import spec, specs
from gradlab.profiling.emulate import options as emulate_options
from gradlab.profiling.scale import options as scale_options
from gradlab.profiling.tune import options as tune_options
from gradlab.workloads import options as train_options

app = typer.Typer(
    name="gradlab",
    help=gradlab.__doc__,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Op = Annotated[str | None, typer.Argument(help=f"An op: {', '.join(specs())}. All ops by default.")]
SideOption = Annotated[
    list[str] | None,
    typer.Option("--side", help=f"{' or '.join(SIDES)}; may be given twice. All installed ones by default."),
]
Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"gradlab {gradlab.__version__}")
        raise typer.Exit


@app.command()
def check(
    target: Annotated[
        str | None, typer.Argument(help=f"An op ({', '.join(specs())}) or FILE.py::function. All ops by default.")
    ] = None,
    side: SideOption = None,
    order: Annotated[
        int | None, typer.Option(min=1, max=2, help="1: the gradient; 2: require a second derivative too.")
    ] = None,
    seed: Seed = 0,
    shapes: Annotated[
        str | None, typer.Option(help='Argument shapes of FILE.py::function: "x[3 4], w[4 5], t[3]: int<5".')
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(help='Further axis lengths of FILE.py::function: "128: 127 129, x[0]: 1 257".')
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="float32, float16 or bfloat16, compared with float64; may be given more than once."),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help="derivative, facts, contract, second, precision, edges or reference. All by default."),
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compare torch.compile with eager too.")] = False,
    budget: Annotated[float | None, typer.Option(min=0.01, help="Time limit in seconds.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all findings to this JSON file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Plot error against step size and the map of errors: .png, .svg or .pdf.")
    ] = None,
    sanitize: Annotated[
        bool, typer.Option("--sanitize", help="Check the memory accesses of every Triton and Pallas kernel that runs.")
    ] = False,
) -> None:
    """Check gradients against finite differences, and functions against the requirements of their framework."""
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
    script: Annotated[Path, typer.Argument(help="A Python script, followed by its own arguments.")],
    first: Annotated[bool, typer.Option("--first", help="Stop at the first fault.")] = False,
    bounds: Annotated[bool, typer.Option("--bounds", help="Look at bounds alone, which costs least.")] = False,
    floats: Annotated[bool, typer.Option("--floats", help="Look for the birth of NaNs and infinities too.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write every fault to this file.")] = None,
) -> None:
    """Run a script and examine what its Triton and Pallas kernels do to memory, on a CPU; exit code 1 with a fault."""
    from gradlab.profiling.sanitize import command

    raise typer.Exit(command.sanitize(script, context.args, first, bounds, floats, json))


@app.command()
def bench(
    op: Op = None,
    side: SideOption = None,
    dtype: Annotated[str, typer.Option(help="float64, float32, float16 or bfloat16.")] = "float32",
    case: Annotated[str | None, typer.Option(help="One case of the op by name. All by default.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="eager or compiled. Both by default.")] = None,
    passes: Annotated[
        list[str] | None, typer.Option("--pass", help="forward, backward or forward+backward. All by default.")
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Time against size: the largest case, scaled down.")] = False,
    budget: Annotated[float, typer.Option(min=0.01, help="Seconds of timing for each group.")] = 1.0,
    sizes: Annotated[str, typer.Option(help='Other sizes of the op\'s largest case: "M=512 K=64".')] = "",
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed of the inputs. A fresh one by default.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write raw samples and the machine to this JSON file.")] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write one line for each measured function to this CSV file.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the table and the machine to this Markdown file.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="An earlier --json file; exit code 1 if anything is slower beyond the noise.")
    ] = None,
) -> None:
    """Time hand-written layers beside native ones and other libraries: eager and compiled, forward and backward."""
    from gradlab.profiling.bench.command import BenchArgs, run

    args = BenchArgs(
        (spec(op).name,) if op else (),
        selected(side),
        dtype,
        tuple(mode or ()),
        tuple(passes or ()),
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
            help="sm_80, sm_86, sm_89, sm_90, sm_100, gfx942; CPUs: native, x86-64-v3, sapphirerapids, "
            "neoverse-v2. Separate several with commas. sm_90 by default."
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            help="float64, float32, float16, bfloat16, separated by commas. bfloat16 by default, float32 on CPUs."
        ),
    ] = None,
    case: Annotated[str | None, typer.Option(help="A case of the op by name. The largest by default.")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="The GPU for waves and minimum time: A100, H100, H200, B200, ...")
    ] = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Print the source with the instructions of each line.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write all numbers to this JSON file.")] = None,
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
    executed: Annotated[
        bool,
        typer.Option(
            "--executed", help="Execute the first program of each launch on torch too, and count what it does."
        ),
    ] = False,
    peers: Annotated[bool, typer.Option("--peers", help="Beside the kernels of Liger-Kernel and inductor.")] = False,
) -> None:
    """Compile the kernels and read their machine code: registers, spills, occupancy, instructions. Needs no GPU."""
    from gradlab.profiling.machine_code import command

    args = command.InspectArgs(op, side or [], arch, dtype, case, gpu, lines, json, check, shapes, executed, peers)
    raise typer.Exit(command.inspect(args, Console()))


@app.command()
def emulate(
    target: emulate_options.Subject = None,
    side: SideOption = None,
    arch: emulate_options.Arch = None,
    dtype: emulate_options.Dtype = None,
    case: emulate_options.Case = None,
    shapes: emulate_options.Shapes = None,
    second: emulate_options.Second = False,
    order: emulate_options.Order = "together",
    early: emulate_options.Early = False,
    approximate: emulate_options.Approximate = False,
    gpu: emulate_options.Gpu = None,
    budget: emulate_options.Budget = 50_000_000,
    lines: emulate_options.Lines = False,
    json: emulate_options.Json = None,
    seed: Seed = 0,
) -> None:
    """Execute the GPU code of kernels on this CPU: results, faults, counts, the bound of a model."""
    from gradlab.profiling.emulate import command

    args = command.EmulateArgs(
        target,
        side or (),
        arch or (),
        dtype or (),
        case,
        shapes,
        second,
        order,
        early,
        approximate,
        gpu,
        budget,
        lines,
        json,
        seed,
    )
    raise typer.Exit(command.emulate(args, Console()))


@app.command()
def tune(
    op: tune_options.Op,
    dtype: tune_options.Dtype = "bfloat16",
    case: tune_options.Case = None,
    limit: tune_options.Limit = 300.0,
    dry_run: tune_options.DryRun = False,
    arch: tune_options.Arch = None,
    gpu: tune_options.Gpu = None,
    to: tune_options.To = None,
    packaged: tune_options.Packaged = False,
) -> None:
    """Measure tile sizes of an op on this machine's GPU and keep the faster ones; --dry-run needs no GPU."""
    from gradlab.profiling.tune import command

    args = command.TuneArgs(op, dtype, case, limit, dry_run, arch, gpu, to, packaged)
    raise typer.Exit(command.tune(args, Console()))


@app.command()
def report(
    op: Op = None,
    side: SideOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="A subset of everything, in a few minutes.")] = False,
    train: Annotated[bool, typer.Option("--train", help="Include the training demo.")] = False,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("report"),
) -> None:
    """Check, inspect and time every op, and write one HTML page: report/report.html."""
    from gradlab.profiling.report.command import ReportArgs, run
    from gradlab.workloads.demonstration import trained

    args = ReportArgs((spec(op).name,) if op else (), selected(side), quick, out, trained if train else None)
    raise typer.Exit(run(args, Console()))


@app.command()
def profile(
    target: Annotated[
        str, typer.Argument(help=f"An op ({', '.join(specs())}) or a workload that `gradlab train` lists.")
    ],
    side: SideOption = None,
    mode: Annotated[
        str | None, typer.Option(help="eager or compile on torch, jit or eager on jax. eager and jit by default.")
    ] = None,
    tool: Annotated[str, typer.Option(help="trace, nsys, ncu, or auto: the best one installed.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Output folder. profile/NAME by default.")] = None,
    case: Annotated[str | None, typer.Option(help="A case of the op by name. The first timed one by default.")] = None,
) -> None:
    """Show where the time goes, per op and kernel: one trace of both frameworks, or nsys, or ncu."""
    from gradlab.profiling.trace import command, op
    from gradlab.profiling.trace.args import checked_args
    from gradlab.workloads import catalogue, profiled

    names = op.cases(spec(target)) if target in specs() else ()
    if not names and target not in catalogue.WORKLOADS:
        every = ", ".join((*specs(), *catalogue.WORKLOADS))
        raise ValueError(f"profile: target is {target!r}, wanted an op or a workload: {every}")
    request = checked_args(target, side, mode, tool, out, case, names)
    if not names:
        profiled.refuse_unsupported(target, request.modes)
    module = (op if names else profiled).__name__
    raise typer.Exit(command.profile(request, module, Console()))


@app.command()
def scale(
    target: scale_options.Target,
    devices: scale_options.Devices = "1..4096",
    gpu: scale_options.Gpu = "H100",
    links: scale_options.Links = None,
    node: scale_options.Node = None,
    batch: scale_options.Batch = None,
    batch_per_device: scale_options.BatchPerDevice = None,
    dtype: scale_options.Dtype = "float32",
    sizes: scale_options.Sizes = "",
    loss: scale_options.Loss = None,
    strategy: scale_options.Strategy = None,
    plot: scale_options.Plot = None,
    json: scale_options.Json = None,
) -> None:
    """Predict a step on many devices: time, memory, bytes sent and what bounds it, for each way to share it out."""
    from gradlab.profiling.scale import command, given
    from gradlab.profiling.scale.args import checked_args
    from gradlab.workloads import catalogue, scaled

    ours = scaled.network(target) if target in catalogue.WORKLOADS else None
    network = given.network(target, tuple(catalogue.WORKLOADS), ours, sizes, loss)
    chosen = tuple(strategy or ())
    args = checked_args(network, gpu, links, node, devices, batch, batch_per_device, dtype, chosen, plot, json)
    raise typer.Exit(command.run(args, Console()))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Output folder for the plot and the table.")] = Path("demo"),
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training data.")] = None,
    seed: Seed = 0,
    side: SideOption = None,
) -> None:
    """Train one network four times (torch and jax, hand-written and native layers) and compare the losses."""
    train("digits-cnn", side=side, compare=True, out=out, epochs=epochs, seed=seed)


@app.command()
def train(
    name: Annotated[str | None, typer.Argument(help="A workload by name. Lists all of them by default.")] = None,
    side: Annotated[
        list[str] | None, typer.Option(help="torch or jax. The first installed one by default, both with --compare.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="gradlab (hand-written) or native. gradlab by default.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Train on both frameworks with both kinds of layers, and compare.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Output folder of --compare. The workload's name by default.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Data file or folder, if the workload needs one.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training data.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows of a batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adam, or sgd with momentum 0.9.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32, bf16 or fp16; weights stay float32.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed of weights, data and batches.")] = None,
    save: train_options.Save = None,
    load: train_options.Load = None,
    resume: train_options.Resume = None,
    fsdp: train_options.Fsdp = False,
    timeout: train_options.Timeout = 300,
    devices: train_options.Devices = None,
    coordinator_address: train_options.CoordinatorAddress = None,
    num_processes: train_options.NumProcesses = None,
    process_id: train_options.ProcessId = None,
) -> None:
    """Train a workload with hand-written or native layers; with --compare, on both frameworks with both."""
    from gradlab.workloads import command, ranks

    args = command.TrainArgs(
        name, tuple(known(s) for s in side or ()), layers, data, epochs, batch_size, lr, optimizer, precision, seed
    )
    spread = ranks.SpreadArgs(fsdp, timeout, devices, coordinator_address, num_processes, process_id)
    raise typer.Exit(command.train(args, compare, out, save, load, resume, spread))


@app.command()
def convert_weights(
    source: Annotated[Path, typer.Argument(help="A safetensors file with torch's or jax's names.")],
    target: Annotated[Path, typer.Argument(help="The file to write, with the other framework's names.")],
) -> None:
    """Convert weights between torch (.weight, [out in]) and jax (.kernel, [in out]): names and axes only."""
    from gradlab.workloads import command

    raise typer.Exit(command.convert_weights(source, target))


def main() -> None:
    """Run the command; a user error, or a disk that is full, is one line on stderr and exit code 2."""
    try:
        app()
    except (ValueError, TypeError, IndexError, ModuleNotFoundError) as error:
        print(f"gradlab: {error}", file=sys.stderr)
        sys.exit(UNUSABLE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"gradlab: output came with {error.strerror!r}, wanted a file that can be written", file=sys.stderr)
        sys.exit(UNUSABLE)
