"""The benchmark's groups as text and Markdown. NumPy only, for machines without rich."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gradlab.profiling.bench.numbers import SUSPECT, Interval
from gradlab.profiling.bench.row import Group, Member

_TIME = (
    "time: median of warm calls ± half its 95 % interval; / native: median over rounds of the time over that of the "
    "native in the same mode (95 % interval); a verdict requires a difference beyond the noise, measured by "
    "timing native twice"
)
_FLOOR = (
    "floor: minimum time / time; the minimum time is the op's minimum bytes and FLOPs at the rates that a "
    "stream of that "
    "size and a matmul reached in this run; SUSPECT: faster than that"
)
_COST = (
    "first: the first call with empty caches, compilation included; cached: again, with the disk caches "
    "filled; memory: "
    "peak beyond the inputs"
)
NO_GPU = "cold (an empty L2) and host (until a call returns) need CUDA"
INTERPRETED = "interpreted: the kernels ran in Triton's interpreter, whose time is never a kernel's speed"
PALLAS = "gradlab on jax on a CPU: Pallas kernels in interpret mode, compiled by XLA as one program"
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def policy(dtype: str) -> str:
    """The precision of products and sums in every member of a group."""
    if dtype in ("float32", "float64"):
        return f"{dtype}: full precision in every product, no TF32"
    return f"{dtype}: gradlab sums products in float32, native as the framework chooses; checked against float32"


def notes(groups: Sequence[Group]) -> list[str]:
    """What the columns mean, for the columns that these groups have."""
    found = [_TIME, _FLOOR, _COST]
    if any(group.device != "cuda" for group in groups):
        found.append(NO_GPU)
    if any(member.interpreted for group in groups for member in group.members):
        found.append(INTERPRETED)
    if any(group.side == "jax" and group.device == "cpu" for group in groups):
        found.append(PALLAS)
    return found


def problem_line(group: Group, member: Member) -> str:
    """A member's problem in a line."""
    if member.problem:
        return f"{member.problem}: {_where(group, member)}: {member.note}"
    share = f"{group.share(member):.0%} of the floor"
    return f"{SUSPECT}: {_where(group, member)}: {share}: the minimum or the measurement is wrong"


def not_replayed(group: Group, member: Member) -> str:
    """Why a short call was launched each time, so that its time includes host overhead; in a line."""
    return f"not replayed from a graph: {_where(group, member)}: {member.launched}"


def _where(group: Group, member: Member) -> str:
    return f"{group.op} on {group.side}, {group.case}, {group.dtype}, {group.direction}, {member.name}"


def markdown(groups: Sequence[Group], machine: Mapping[str, str]) -> str:
    """The same as a Markdown table with the machine above it, one line per member."""
    lines = [f"- {key}: {value}" for key, value in machine.items()]
    lines += [f"- precision: {policy(dtype)}" for dtype in dict.fromkeys(group.dtype for group in groups)]
    unit = Rate.of(groups)
    head = (*_LABELS, "implementation", *TIMES, *unit.costs, "function")
    lines += ["", _line(head), _line([*["---"] * (len(_LABELS) + 1), *["---:"] * (len(TIMES) + len(COSTS)), "---"])]
    for group in groups:
        for member in group.members:
            labels = (group.op, group.case, group.words, group.dtype, group.side, group.direction)
            cells = [str(cell) for cell in (*times(group, member), *costs(group, member, unit))]
            lines.append(_line((*labels, member.name, *cells, f"`{member.label}`")))
    lines += ["", *(f"{note}.  " for note in notes(groups)), ""]
    lines += [f"- `{problem_line(g, m)}`" for g in groups for m in g.members if m.problem or g.verdict(m) == SUSPECT]
    lines += [f"- `{not_replayed(g, m)}`" for g in groups for m in g.members if m.launched]
    return "\n".join(lines).rstrip() + "\n"


TIMES = ("time", "/ native", "verdict", "floor")
COSTS = ("cold", "host", "GB/s", "FLOP/s", "first", "cached", "memory")
_LABELS = ("op", "case", "sizes", "dtype", "side", "pass")


class Rate(NamedTuple):
    """A unit of FLOPs a second."""

    scale: float
    name: str

    @classmethod
    def of(cls, groups: Sequence[Group]) -> "Rate":
        """The one that suits the devices of these groups."""
        return cls(1e12, "TFLOP/s") if max((g.rate for g in groups), default=0.0) >= 1e12 else cls(1e9, "GFLOP/s")

    @property
    def costs(self) -> tuple[str, ...]:
        """COSTS, with this unit's name."""
        return tuple(self.name if name == "FLOP/s" else name for name in COSTS)

    def words(self, rate: float) -> str:
        """The number alone, three digits of it."""
        value = rate / self.scale
        return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def times(group: Group, member: Member) -> tuple[str, ...]:
    """A member's cells below TIMES."""
    ratio, verdict = group.ratio(member), group.verdict(member)
    if not member.warm:
        return "", "", verdict, ""
    share = group.share(member)
    return (
        duration(member.time),
        ratio_in_words(ratio) if ratio else "1",
        verdict,
        "–" if share is None else f"{share:.0%}",
    )


def costs(group: Group, member: Member, unit: Rate) -> tuple[str, ...]:
    """A member's cells below COSTS, FLOPs a second in this unit."""
    if not member.warm:
        return ("",) * len(COSTS)
    seconds = member.time.median
    rates = ["–", "–"]
    if not member.interpreted:
        rates = [three(group.bytes / seconds / 1e9), unit.words(group.flops / seconds)]
    medians = (sorted(kind)[len(kind) // 2] if kind else None for kind in (member.cold, member.host))
    first, cached = (seconds_in_words(s) for s in (member.first_call, member.cached_call))
    cold, host = (seconds_in_words(s) for s in medians)
    return cold, host, *rates, first, cached, size_in_words(member.peak_bytes)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def ratio_in_words(found: Interval) -> str:
    """`2.00 (1.95–2.07)`: median and interval."""
    return f"{three(found.median)} ({three(found.low)}–{three(found.high)})"


def duration(time: Interval) -> str:
    """`12.3 ± 0.4 ms`: median and half its interval, in the unit that suits the median."""
    scale, unit = next((u for u in _UNITS if time.median >= u[0]), _UNITS[-1])
    median, half = time.median / scale, (time.high - time.low) / 2 / scale
    # No more decimals than the median has.
    digits = min(len(three(value).partition(".")[2]) for value in (median, half))
    return f"{three(median)} ± {half:.{digits}f} {unit}"


def seconds_in_words(seconds: float | None) -> str:
    """`12.3 ms`, or a dash."""
    if seconds is None:
        return "–"
    scale, unit = next((u for u in _UNITS if seconds >= u[0]), _UNITS[-1])
    return f"{three(seconds / scale)} {unit}"


def size_in_words(size: int | None) -> str:
    """`12.3 MB`, or a dash."""
    if size is None:
        return "–"
    scale, unit = next(((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= s), (1, "B"))
    return f"{three(size / scale)} {unit}" if scale > 1 else f"{size} B"


def three(value: float) -> str:
    """Three digits and never an exponent: 0.12, 4.56, 78.9, 123, 12345."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"
