"""The processes that share one training run: which of them this is, and which rows of a batch are its own.

The world is read from what a launcher puts into the environment; no framework is needed to read it.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

# What torchrun, and every launcher of torch.distributed's env:// kind, tells each process.
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class World(NamedTuple):
    """`size` processes, of which this is number `rank`; a run of one process on one device by default.

    Attributes:
        local_rank: its number among those of its machine, which is that of its device.
        kind: how the processes share the run, as "DDP"; empty where a process stands alone.
        devices: how many devices they have together; 0 where each has its own and no more.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    kind: str = ""
    devices: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process is the one that prints."""
        return self.rank == 0

    @property
    def shared(self) -> bool:
        """Whether a launcher started this run, be it of a single process."""
        return bool(self.kind)

    def part(self, rows: int) -> slice:
        """This process's rows of a batch of that many: one block, of the same length on every process."""
        each = rows // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def want_rows(self, batch: int) -> None:
        """Refuse a batch that cannot be shared evenly: a mean of unequal parts is not the batch's mean.

        Raises:
            ValueError: a batch that is no multiple of the processes, or of the devices.
        """
        count, what = (self.devices, "devices") if self.devices else (self.size, "processes")
        if batch % count:
            raise ValueError(f"train: batch-size is {batch}, wanted a multiple of the {count} {what}")

    def __str__(self) -> str:
        if self.devices:
            where = f" of {self.size} processes" if self.size > 1 else ""
            return f"{self.devices} device{'' if self.devices == 1 else 's'}{where}, {self.kind}"
        if self.size == 1:
            return "1 process, FSDP" if self.kind == "FSDP" else "1 process"
        return f"{self.size} processes, {self.kind}"


def torchrun(fsdp: bool = False, environ: Mapping[str, str] = os.environ) -> World | None:
    """The world that torchrun started this process in; None without torchrun.

    Args:
        fsdp: whether parameters are sharded too.

    Raises:
        ValueError: a variable that is no number, or a rank outside of the world.
    """
    if any(name not in environ for name in _VARIABLES):
        return None
    rank, size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    if not 0 <= rank < size:
        raise ValueError(f"train: RANK is {rank}, wanted 0 to {size - 1}, as WORLD_SIZE is {size}")
    local = _number(environ, "LOCAL_RANK") if "LOCAL_RANK" in environ else rank
    return World(rank, size, local, "FSDP" if fsdp else "DDP")


def _number(environ: Mapping[str, str], name: str) -> int:
    if not environ[name].isdecimal():
        raise ValueError(f"train: {name} is {environ[name]!r}, wanted a number, as torchrun sets it")
    return int(environ[name])
