"""What a run needs of the processes that share it, whatever joins them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from gradlab.workloads.world import World

# Seconds that a process waits for the others: compiling and reading data take different times on each.
TIMEOUT = 300.0


class Ranks(Protocol):
    """The processes of a run as one of them sees them.

    Attributes:
        side: the framework that joined them.
        world: how many they are, and which this is.
        told: the signals that reached this process, which end the run between two steps.
        steps: how many were taken, for the line of a run that loses a process.
        saved: where the run was last saved, for the same line; empty if nowhere. Not empty at the start where a
            launcher starts processes again that had saved: they go on from there.
        token: 8 hex digits that all processes have and no other run has, once they have begun.
    """

    side: str
    world: World
    told: list[int]
    steps: int
    saved: str
    token: str

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Compare what determines the numbers, on all processes, and join them.

        Raises:
            ValueError: they differ, or a process ended before.
        """
        ...

    def outcome(self, error: str) -> str:
        """The error of the first process that has one, for all of them; empty if all went well."""
        ...


def want_same(every: Sequence[Mapping[str, Any]], process: str) -> None:
    """Refuse processes that differ in what they say of themselves, each of them in the order of `every`.

    Args:
        process: the word of its launcher for one: "rank", "process".

    Raises:
        ValueError: the first difference from number 0.
    """
    for name, value in every[0].items():
        for number, said in enumerate(every):
            if said.get(name) != value:
                came = f"{name} of {process} {number} is {said.get(name)}"
                raise ValueError(f"train: {came}, wanted {value} as on {process} 0")


def lost_line(ranks: Ranks, who: str) -> str:
    """The line of a run that lost a process."""
    saved = f"--resume {ranks.saved} continues from its last save" if ranks.saved else "nothing was saved"
    return f"train: {who}; the run ends after {ranks.steps} steps; {saved}"


class SpreadArgs(NamedTuple):
    """How the command line spreads a run.

    Attributes:
        fsdp: parameters are sharded too, not only the batch.
        timeout: seconds that a process waits for the others.
        devices: on jax, how many devices all processes have together; all that there are when None.
        coordinator_address, num_processes, process_id: the arguments of `jax.distributed.initialize`.
    """

    fsdp: bool = False
    timeout: float = TIMEOUT
    devices: int | None = None
    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    @property
    def on_jax(self) -> bool:
        """Whether one of the options of jax's is given."""
        return bool(self.words)

    @property
    def words(self) -> str:
        """The first of these options as it is written."""
        given = (name for name, value in list(self._asdict().items())[2:] if value is not None)
        return next((f"--{name.replace('_', '-')}" for name in given), "")
