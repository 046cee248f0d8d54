"""The processes that torchrun started: compared and joined at the start, and told of each other's end.

They talk through torchrun's store beside the collectives, since a collective that loses a process says only that a
connection is closed. A process that fails leaves its error there; the others find it, or find who left no word.
"""

import itertools
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.rendezvous import rendezvous

from gradlab.base.exit_codes import FOUND, SIGNALLED, UNUSABLE
from gradlab.base.terminal import first_line
from gradlab.workloads import interrupt
from gradlab.workloads.ranks import lost_line, want_same
from gradlab.workloads.world import World

# Errors that are a user's to mend, and one line.
_USERS = (ValueError, TypeError, IndexError)
# Seconds in which processes that lost another one hear of each other. torchrun looks at its processes ten times a
# second: it must see the one that is gone before those that end for want of it.
_PATIENCE = 5.0
# Seconds between two looks for an alarm.
_PERIOD = 0.5
_RUNS = itertools.count()


class _Interrupted(Exception):
    """A signal came while the processes were still waiting for each other."""


class TorchRanks:
    """`ranks.Ranks` over torch.distributed."""

    side = "torch"

    def __init__(self, world: World, told: list[int], timeout: float) -> None:
        self.world, self.told, self.steps = world, told, 0
        self.token = secrets.token_hex(4)
        # What was said in an earlier attempt of torchrun's, or in an earlier run of this process, is not an answer;
        # where it was saved is.
        run, attempt = f"gradlab/{next(_RUNS)}", os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._prefix, self._where = f"{run}/{attempt}", f"{run}/saved"
        self._timeout, self._reached = timeout, True
        self._over, self._listener = threading.Event(), threading.Thread(target=self._listen, daemon=True)
        try:
            self._store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
        except (dist.DistError, RuntimeError, TimeoutError) as error:
            where, why = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", first_line(error)
            raise ValueError(f"train: store at {where} is not reached ({why}), wanted torchrun's") from None
        self._saved = self._read(self._where)

    @property
    def saved(self) -> str:
        """Where the run was last saved, in this attempt of torchrun's or an earlier one; empty if nowhere."""
        return self._saved

    @saved.setter
    def saved(self, path: str) -> None:
        if self.world.leads and path != self._saved:
            self._write(self._where, path)
        self._saved = path

    def begin(self, facts: Mapping[str, Any]) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        own = {"torch": torch.__version__, "device": device, **facts}
        self._set("start", json.dumps([self.token, own]))
        every: list[dict[str, Any]] = []
        for rank in range(self.world.size):
            token, said = json.loads(self._awaited("start", rank))
            if rank == 0:
                self.token = token
            every.append(said)
            # At once: a process that differs is not waited for by those after it.
            want_same(every, "rank")
        self._listener.start()
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            store=dist.PrefixStore(f"{self._prefix}/group", self._store),
            rank=self.world.rank,
            world_size=self.world.size,
            timeout=timedelta(seconds=self._timeout),
        )

    def outcome(self, error: str) -> str:
        every: list[str] = [""] * self.world.size
        dist.all_gather_object(every, error)
        return next(filter(None, every), "")

    def tell(self, text: str) -> None:
        """Leave a last word for the others."""
        self._set("ended", text)

    def lost(self, error: BaseException) -> str:
        """Who is gone, in one line, the same on all, after a collective failed for want of another process.

        A process may wait for one that is well and itself waits for the one that is gone: it hears of nothing, but its
        listener answers the alarm. Of a collective that took too long that is no answer: who is late has one as well.
        """
        late = "Timed out" in str(error) or "timeout" in str(error)
        answers = ("lost",) if late else ("lost", "here")
        self._set("lost", "1")
        self._write(f"{self._prefix}/alarm", "1")
        missing = [rank for rank in range(self.world.size) if rank != self.world.rank]
        until = time.monotonic() + _PATIENCE
        while missing and self._reached and time.monotonic() < until:
            if verdict := self._read(f"{self._prefix}/verdict"):
                return verdict
            for rank in list(missing):
                if words := self._get("ended", rank):
                    return self._agreed(f"rank {rank} ended: {words}")
                if any(self._get(word, rank) for word in answers):
                    missing.remove(rank)
            time.sleep(0.05)
        if not missing:
            return self._agreed("a connection between two processes broke")
        if not self._reached and len(missing) > 1:
            return "another process is gone, and torchrun's store with it"
        who = f"rank {', '.join(map(str, missing))}"
        if late:
            return self._agreed(f"{who} has not answered for {self._timeout:g} s")
        return self._agreed(f"{who} is gone: killed, or out of memory")

    def leave(self) -> None:
        """End the listener."""
        self._over.set()
        if self._listener.ident is not None:
            self._listener.join()

    def _listen(self) -> None:
        """Answer an alarm, while the thread that trains may wait in a collective."""
        while not self._over.wait(_PERIOD):
            if self._read(f"{self._prefix}/alarm"):
                self._set("here", "1")
                return

    def _agreed(self, verdict: str) -> str:
        """The first verdict that a process came to."""
        if self._reached:
            with self._asking():
                return self._store.compare_set(f"{self._prefix}/verdict", "", verdict).decode()
        return verdict

    def _awaited(self, word: str, rank: int) -> str:
        """What that rank says; in short waits, in which signals are heard."""
        until = time.monotonic() + self._timeout
        while not (said := self._get(word, rank)):
            for other in range(self.world.size):
                ended = self._get("ended", other)
                # What it said before it ended may be the reason, which every process is to see for itself.
                if ended and not self._get(word, rank):
                    raise ValueError(f"train: rank {other} has ended ({ended}), wanted all {self.world.size} processes")
            if self.told:
                raise _Interrupted
            if time.monotonic() > until:
                late = f"silent for {self._timeout:g} s"
                raise ValueError(f"train: rank {rank} is {late}, wanted all {self.world.size} processes")
            time.sleep(0.01)
        return said

    def _set(self, word: str, value: str) -> None:
        self._write(f"{self._prefix}/{word}/{self.world.rank}", value)

    def _get(self, word: str, rank: int) -> str:
        return self._read(f"{self._prefix}/{word}/{rank}")

    def _write(self, key: str, value: str) -> None:
        if self._reached:
            with self._asking():
                self._store.set(key, value)

    def _read(self, key: str) -> str:
        if self._reached:
            with self._asking():
                if self._store.check([key]):
                    return self._store.get(key).decode()
        return ""

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """The store is gone with the torchrun that keeps it; each further question would be a page of C++ frames."""
        try:
            yield
        except RuntimeError:
            self._reached = False


def together(world: World, timeout: float, work: Callable[[TorchRanks], int]) -> int:
    """The exit code of a work that all processes do; a line on each when one of them fails.

    Raises:
        ValueError: a device or a store that is not there.
    """
    with interrupt.delayed() as told:
        if torch.cuda.is_available():
            if world.local_rank >= (there := torch.cuda.device_count()):
                raise ValueError(f"train: LOCAL_RANK is {world.local_rank}, wanted less than the {there} GPUs here")
            torch.cuda.set_device(world.local_rank)
        ranks = TorchRanks(world, told, timeout)
        try:
            return _ended(ranks, work)
        finally:
            ranks.leave()


def _ended(ranks: TorchRanks, work: Callable[[TorchRanks], int]) -> int:
    try:
        code = work(ranks)
    except _Interrupted:
        _say("interrupted before the first step")
        return SIGNALLED + ranks.told[0]
    except _USERS as error:
        ranks.tell(first_line(error))
        _record(str(error))
        _say(f"gradlab: {error}")
        return UNUSABLE
    except RuntimeError as error:
        if not _of_a_collective(error):
            _fail(ranks, error)
            raise
        line = lost_line(ranks, ranks.lost(error))
        _record(line)
        _say(f"gradlab: {line}")
        return FOUND
    except Exception as error:
        _fail(ranks, error)
        raise
    if dist.is_initialized():
        dist.destroy_process_group()
    elif code:
        ranks.tell(f"exit code {code}")
    return code


def _of_a_collective(error: RuntimeError) -> bool:
    """Whether another process is to blame: gloo's errors are plain ones that name its files."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _fail(ranks: TorchRanks, error: Exception) -> None:
    ranks.tell(f"{type(error).__name__}: {first_line(error)}")
    get_error_handler().record_exception(error)


def _record(line: str) -> None:
    """Write a line where torchrun looks for the error of a process, so that its own report shows it."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        extra = {"timestamp": str(int(time.time()))}
        Path(path).write_text(json.dumps({"message": {"message": line, "extraInfo": extra}}), encoding="utf-8")


def _say(line: str) -> None:
    """A line on stderr in one piece: the other processes write there at the same moment."""
    sys.stderr.write(f"{line}\n")
