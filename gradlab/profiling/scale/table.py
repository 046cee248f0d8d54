"""The tables of `gradlab scale`, the assumptions behind them, and what they leave out."""

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table

from gradlab.base.terminal import print_line
from gradlab.profiling.scale.args import ScaleArgs
from gradlab.profiling.scale.model import Prediction

WORDS = {
    "data": "data",
    "sharded": "fully sharded",
    "tensor": "tensor",
    "vocabulary": "vocabulary",
    "mix": "best mix",
}
ASSUMED = (
    "a layer takes the longest of FLOPs / peak, bytes / bandwidth and launches; all of peak and bandwidth is reached",
    "data: gradients are added in DDP's buckets while backward goes on",
    "fully sharded: FSDP2, each layer a unit, the next layer's parameters gathered while one is computed",
    "tensor and vocabulary: sums are waited for",
    "all-reduce by the quicker of ring and tree, the rest by rings; over nodes within, between and within again",
    "a batch that does not divide is as slow as the device with the most rows",
)
NOT_MODELLED = (
    "stragglers, contention of links and of memory with communication, data loading, caches, fragmentation, padding of "
    "kernels' tiles, pipeline and expert parallelism, recomputed activations, optimizer offload"
)


COLUMNS = ("devices", "data", "shards", "tensor", "step", "eff.", "memory", "sent", "bound by")


def show(args: ScaleArgs, found: Mapping[str, Mapping[int, Prediction]], console: Console) -> None:
    """Print all of it."""
    machine = args.machine
    print_line(console, about(args), "bold")
    print_line(console, hardware(args))
    print_line(console, "")
    console.print(_times(args, found))
    console.print(_detail(args, found[args.detail], baseline(args, found)))
    for reason in _reasons(found):
        print_line(console, f"-: {reason}", "yellow")
    if machine.memory and any(one.memory > machine.memory for steps in found.values() for one in steps.values()):
        print_line(console, f"!: needs more than the {size(machine.memory)} that a device has", "yellow")
    print_line(console, f"Assumed: {'; '.join(ASSUMED)}.")
    print_line(console, f"Not modelled: {NOT_MODELLED}.")


def about(args: ScaleArgs) -> str:
    """What is predicted, in a line."""
    rows = f"{args.each} rows a device" if args.each is not None else f"a batch of {args.batch}"
    count = args.network.parameters()
    return f"{args.network.name}: {number(count).strip()} parameters, {rows}, {args.dtype}"


def hardware(args: ScaleArgs) -> str:
    """The devices and links, in a line."""
    m = args.machine
    rate = f"{number(m.ceilings.rates[args.dtype])}FLOP/s, {number(m.ceilings.bandwidth)}B/s ({m.ceilings.source})"
    links = [f"{link.name} {link.bandwidth / 1e9:g} GB/s {where}" for link, where in (
        (m.within, "in a node"), (m.between, "between nodes"))]  # fmt: skip
    if m.within == m.between:
        links = [f"{m.within.name} {m.within.bandwidth / 1e9:.3g} GB/s"]
    nodes = f"{m.node} a node" if m.cores is None else f"{m.cores} cores"
    return f"{m.name}: {rate}; {nodes}; {', '.join(links)}; {m.launch * 1e6:.2g} us a launch"


def baseline(args: ScaleArgs, found: Mapping[str, Mapping[int, Prediction]]) -> float | None:
    """Rows a second of one device: of the smallest number of devices, over that number; None where there is no step."""
    for n in args.devices:
        steps = [one for of in found.values() if not (one := of[n]).refused]
        if steps:
            return max(one.batch / one.seconds for one in steps) / n
    return None


def efficiency(one: Prediction, base: float | None) -> float | None:
    """Rows a second of a device, over those of one alone."""
    return None if one.refused or not base else one.batch / one.seconds / one.degrees.devices / base


def _times(args: ScaleArgs, found: Mapping[str, Mapping[int, Prediction]]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), title="seconds of a step", title_justify="left")
    table.add_column("devices", justify="right")
    for name in found:
        table.add_column(WORDS[name], justify="right")
    for n in args.devices:
        table.add_row(str(n), *(_time(args, of[n]) for of in found.values()))
    return table


def _time(args: ScaleArgs, one: Prediction) -> str:
    return "-" if one.refused else seconds(one.seconds) + ("!" if _too_large(args, one) else "")


def _too_large(args: ScaleArgs, one: Prediction) -> bool:
    return bool(args.machine.memory) and one.memory > args.machine.memory


def _detail(args: ScaleArgs, steps: Mapping[int, Prediction], base: float | None) -> Table:
    title = f"{WORDS[args.detail]} in detail"
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "bound by" else "right", no_wrap=True)
    for n, one in steps.items():
        if one.refused:
            table.add_row(str(n), "-")
            continue
        share = efficiency(one, base)
        bound = f"{one.bound} {one.parts[one.bound] / one.seconds:.0%}"
        table.add_row(
            str(n),
            *(str(n) if n > 1 else "" for n in vars(one.degrees).values()),
            seconds(one.seconds),
            "" if share is None else f"{share:.0%}",
            size(one.memory) + ("!" if _too_large(args, one) else ""),
            size(one.sent),
            bound,
        )
    return table


def _reasons(found: Mapping[str, Mapping[int, Prediction]]) -> list[str]:
    """Why steps cannot be taken, each reason once, with the first number of devices that has it."""
    lines: list[str] = []
    for name, steps in found.items():
        refused = [(n, one.refused) for n, one in steps.items() if one.refused]
        if refused:
            n, why = refused[0]
            lines.append(f"{WORDS[name]} from {n} devices: {why}")
    return lines


def seconds(n: float) -> str:
    """Seconds, with a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if n >= scale:
            return f"{n / scale:.3g} {unit}"
    return f"{n * 1e9:.3g} ns"


def size(n: float) -> str:
    """Bytes, with a unit."""
    return f"{number(n)}B"


def number(n: float) -> str:
    """A number with a prefix."""
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= scale:
            return f"{n / scale:.3g} {prefix}"
    return f"{n:.3g} "
