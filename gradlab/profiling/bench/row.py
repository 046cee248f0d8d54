"""The results of a benchmark run: groups of members timed interleaved, with raw samples."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gradlab.profiling.bench.numbers import SUSPECT, Interval, interval, noise, ratio, verdict

EAGER, COMPILED = "eager", "compiled"
MODES = (EAGER, COMPILED)
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
PASSES = (FORWARD, BACKWARD, BOTH)
GRADLAB, NATIVE = "gradlab", "native"
INTERPRETED = "interpreted"
# Beside the verdicts of a ratio: differs by more than rounding explains, not timed; an error; every round throttled.
WRONG, FAILED, THROTTLED = "WRONG", "FAILED", "THROTTLED"


@dataclass(frozen=True)
class Member:
    """One implementation in one mode; times are in seconds a call, round by round.

    Attributes:
        implementation: "gradlab", "native", or a peer's name.
        label: the function's name in its documentation.
        mode: "eager" or "compiled".
        problem: WRONG or FAILED and then not timed, THROTTLED, or nothing.
        note: the problem, in a line.
        interpreted: whether the kernels' source ran in Triton's interpreter: then no time here is a kernel's speed.
        launched: why a short call was not replayed from a CUDA graph; its time may be launch overhead.
        repeat: calls per sample.
        warm: calls back to back, the device included; replayed from a graph where `replayed`.
        cold: single calls whose data is not in the GPU's L2; empty on a CPU.
        host: until the call returns, the device not waited for; empty on a CPU.
        first_call: seconds of the first call with empty caches: tracing, compiling, running.
        cached_call: the first call again, with the caches on disk filled.
        peak_bytes: peak memory beyond the inputs; None if unknown.
    """

    implementation: str
    label: str
    mode: str
    problem: str = ""
    note: str = ""
    interpreted: bool = False
    replayed: bool = False
    launched: str = ""
    repeat: int = 0
    warm: tuple[float, ...] = ()
    cold: tuple[float, ...] = ()
    host: tuple[float, ...] = ()
    first_call: float | None = None
    cached_call: float | None = None
    peak_bytes: int | None = None

    @property
    def name(self) -> str:
        return f"{self.implementation} {self.mode}"

    @property
    def time(self) -> Interval:
        """The warm median; only where it was timed."""
        return interval(self.warm)


@dataclass(frozen=True)
class Group:
    """One case of an op on one side in one direction: its members, and the ceilings measured with them.

    Attributes:
        sizes: the case's axes.
        device: "cpu", "cuda", ...
        seed: of the random inputs, fresh for each group.
        flops, bytes: least work of the direction, from the op's Spec.
        bandwidth, rate: bytes and FLOPs per second that the device reached in this run, on data of this size.
        repeated_native: samples of the first native member timed a second time, which give the noise.
        dropped: rounds discarded because the GPU throttled.
        swept: the size relative to the case that was scaled; None where it is a case of the Spec.
    """

    op: str
    case: str
    sizes: Mapping[str, int]
    side: str
    direction: str
    dtype: str
    device: str
    seed: int
    flops: int
    bytes: int
    bandwidth: float
    rate: float
    members: tuple[Member, ...] = ()
    repeated_native: tuple[float, ...] = ()
    dropped: int = 0
    swept: float | None = None
    clocks: Mapping[str, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, ...]:
        """Identifies a group across runs."""
        sizes = " ".join(f"{axis}={n}" for axis, n in self.sizes.items())
        return self.op, self.case, sizes, self.side, self.direction, self.dtype, self.device

    @property
    def words(self) -> str:
        return ", ".join(f"{axis} {n}" for axis, n in self.sizes.items())

    @property
    def noise(self) -> float:
        """How far the ratio of the native to itself strays from 1, relative; 0 where nothing native was timed."""
        first = next((m for m in self.members if m.implementation == NATIVE and m.warm), None)
        return noise(first.warm, self.repeated_native) if first and self.repeated_native else 0.0

    @property
    def floor(self) -> float:
        """Minimum seconds at the ceilings: the larger of bytes / bandwidth and FLOPs / rate."""
        return max(self.bytes / self.bandwidth, self.flops / self.rate)

    def baseline(self, member: Member) -> Member | None:
        """The native member in the same mode; None for itself, or where it failed."""
        found = next((m for m in self.members if m.implementation == NATIVE and m.mode == member.mode and m.warm), None)
        return None if found is member else found

    def ratio(self, member: Member) -> Interval | None:
        """The member's time over its baseline's, round by round."""
        base = self.baseline(member)
        return ratio(member.warm, base.warm) if base and member.warm else None

    def verdict(self, member: Member) -> str:
        """A problem, SUSPECT, SAME, FASTER, SLOWER or UNCLEAR; nothing for a baseline that is not suspect.

        An interpreted member has no other verdict.
        """
        if member.problem or member.interpreted:
            return member.problem or INTERPRETED
        if member.time.high * (1 + self.noise) < self.floor:
            return SUSPECT
        found = self.ratio(member)
        return verdict(found, self.noise) if found else ""

    def share(self, member: Member) -> float | None:
        """The floor's share of the member's time, 1 at the ceiling; None for what was interpreted."""
        return None if member.interpreted or not member.warm else self.floor / member.time.median

    def as_json(self) -> dict[str, Any]:
        """Plain values; seconds rounded to a tenth of a nanosecond, as less is noise."""
        values = asdict(self)
        for member in values["members"]:
            member |= {kind: [round(s, 10) for s in member[kind]] for kind in ("warm", "cold", "host")}
        return values | {"repeated_native": [round(s, 10) for s in self.repeated_native]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Group":
        members = (
            Member(**{**m, **{kind: tuple(m[kind]) for kind in ("warm", "cold", "host")}}) for m in values["members"]
        )
        found = {key: value for key, value in values.items() if key != "twin"}
        found["repeated_native"] = tuple(values.get("repeated_native", values.get("twin", ())))
        return cls(**{**found, "members": tuple(members)})
