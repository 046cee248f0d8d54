"""The devices and processes of a run on jax: started, compared before their first sum, and told of each other's end.

Processes talk through the key-value store of jax.distributed beside the collectives. One that fails leaves its error
there, and the others end with it. One that is killed leaves nothing: jax.distributed misses its heartbeats and aborts
the others in C++, which `base/aborts.py` makes a line of.
"""

import json
import os
import re
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import jax
import jaxlib

import gradlab
from gradlab.base.aborts import explained
from gradlab.base.exit_codes import FOUND, SIGNALLED, UNUSABLE
from gradlab.base.terminal import first_line
from gradlab.kernels.private.private_jax import coordination
from gradlab.workloads import interrupt
from gradlab.workloads.ranks import SpreadArgs, lost_line, want_same
from gradlab.workloads.world import World

# Errors that are a user's to mend, and one line.
_USERS = (ValueError, TypeError, IndexError, ModuleNotFoundError)
# The most seconds without a heartbeat after which a process counts as lost.
_HEARTBEAT = 30
# Seconds between two looks for the last word of another process, and those that a process stays to be heard.
_EVERY, _HEARD = 0.5, 2.0
# Where the schedulers that jax.distributed knows by itself say how many processes there are.
_SCHEDULERS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
# Errors of a collective or of the key-value store whose other end is gone.
_LOST = re.compile("gloo|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|Connection", re.I)
# What gloo says of a run that is as it should be, and the coordination service of one that ends in a line of ours.
_CHATTER = r"\[Gloo\] Rank \d+ is connected|coordination_service|^The tasks have crashed|^RPC: /xla|^\d+$"


class JaxRanks:
    """`ranks.Ranks` over jax.distributed, or of one process that has several devices."""

    side = "jax"

    def __init__(self, told: list[int], patience: float) -> None:
        self.told, self.steps, self.saved, self.token = told, 0, "", secrets.token_hex(4)
        self.patience, self._turn, self._begun, self._leaving = patience, 0, False, threading.Lock()
        self._client, rank, size = coordination()
        self.world = World(rank, size)
        self._watching = threading.Thread(target=self._watch, daemon=True)
        if self._client is not None:
            self._watching.start()

    def start(self, spread: SpreadArgs) -> None:
        """Start jax on the devices that are asked for.

        Raises:
            ValueError: other versions or options on another process, or fewer devices.
        """
        wanted, size = spread.devices, self.world.size
        versions = {"gradlab": gradlab.__version__, "jax": jax.__version__, "jaxlib": jaxlib.__version__}
        self._compare("start", versions | {"devices": wanted, "fsdp": spread.fsdp})
        if wanted is not None and wanted % size:
            raise ValueError(f"train: devices is {wanted}, wanted a multiple of the {size} processes")
        if wanted is not None and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
            # Once jax has started it refuses this: then there are as many as there are.
            with suppress(RuntimeError):
                jax.config.update("jax_num_cpu_devices", wanted // size)
        there = jax.local_device_count() * size
        if wanted is not None and wanted > there:
            kind = jax.devices()[0].device_kind
            raise ValueError(f"train: devices is {wanted}, wanted at most the {there} that jax finds here, of {kind}")
        kind = "FSDP" if spread.fsdp else "data parallel"
        self.world = self.world._replace(devices=there if wanted is None else wanted, kind=kind)

    def begin(self, facts: Mapping[str, Any]) -> None:
        kind = jax.devices()[0].device_kind
        self._compare("facts", {"device": kind, "devices": self.world.devices, **facts})
        self.token = self._every("token", self.token)[0]
        self._begun = True

    def outcome(self, error: str) -> str:
        self._turn += 1
        return next(filter(None, self._every(f"outcome{self._turn}", error)), "")

    def end(self) -> None:
        """Wait for the others, so that none is taken for lost that is only done."""
        if self._client is not None:
            self._client.wait_at_barrier("gradlab/end", int(1000 * self.patience))
            self._leaving.acquire()
            self._watching.join(10)
            jax.distributed.shutdown()

    def fail(self, code: int, line: str, word: str) -> None:
        """End this process with a line on stderr, and the others with a word of what happened here."""
        with suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"gradlab/ended/{self.world.rank}", word)
        self._leave(code, line)

    def lost(self, who: str) -> str:
        """The line of a run that lost a process."""
        return f"gradlab: {lost_line(self, who)}"

    def given_up(self, who: str) -> str:
        """The same, once jax.distributed has given up; a process that is leaving already is left the time for it."""
        if not self._leaving.acquire(blocking=False):
            time.sleep(2 * _HEARD)
        return self.lost(who)

    def _leave(self, code: int, line: str) -> None:
        """End this process at once, with one line: at its usual end jax.distributed would wait for the others."""
        if not self._leaving.acquire(blocking=False):
            threading.Event().wait()
        with suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)
            sys.stdout.flush()
        # Process 0 keeps what the others are still to read.
        time.sleep(_HEARD)
        os._exit(code)

    def _compare(self, word: str, facts: Mapping[str, Any]) -> None:
        """Refuse processes that differ, on each of them."""
        want_same([json.loads(said) for said in self._every(word, json.dumps(facts))], "process")

    def _every(self, word: str, own: str) -> list[str]:
        """What each process says, in their order."""
        if self._client is None:
            return [own]
        # An empty value cannot be told from none.
        self._client.key_value_set(f"gradlab/{word}/{self.world.rank}", f"={own}")
        return [self._awaited(f"gradlab/{word}/{rank}", rank) for rank in range(self.world.size)]

    def _awaited(self, key: str, rank: int) -> str:
        """A value; in short waits, in which signals are heard. Once a run has begun they wait for the end of a step."""
        until = time.monotonic() + self.patience
        while True:
            try:
                return self._client.blocking_key_value_get(key, 500)[1:]
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            if self.told and not self._begun:
                self.fail(SIGNALLED + self.told[0], "interrupted before the first step", "interrupted")
            if time.monotonic() > until:
                late = f"silent for {self.patience:g} s"
                raise ValueError(f"train: process {rank} is {late}, wanted all {self.world.size} processes")

    def _watch(self) -> None:
        """End this process when another one leaves word that it ended."""
        while not self._leaving.locked():
            time.sleep(_EVERY)
            # Nobody is told of a store that is gone: jax.distributed misses it too.
            with suppress(jax.errors.JaxRuntimeError):
                for key, word in self._client.key_value_dir_get("gradlab/ended/"):
                    if (rank := int(key.rpartition("/")[2])) != self.world.rank:
                        self._leave(FOUND, self.lost(f"process {rank} ended: {word}"))


def together(spread: SpreadArgs, work: Callable[[JaxRanks], int]) -> int:
    """The exit code of a work on several devices, which all processes do; a line on each when one of them fails.

    Raises:
        ValueError: what the work raises, in a process that stands alone.
    """
    several = _several(spread)
    with interrupt.delayed() as told:
        if not several:
            ranks = JaxRanks(told, spread.timeout)
            ranks.start(spread)
            return work(ranks)
        here: list[JaxRanks] = []
        with explained(lambda text: _of_abort(text, spread, here), _CHATTER):
            _connect(spread)
            here.append(JaxRanks(told, spread.timeout))
            return _shared(here[0], spread, work)


def _shared(ranks: JaxRanks, spread: SpreadArgs, work: Callable[[JaxRanks], int]) -> int:
    try:
        ranks.start(spread)
        code = work(ranks)
        ranks.end()
        return code
    except _USERS as error:
        ranks.fail(UNUSABLE, f"gradlab: {error}", first_line(error))
    except KeyboardInterrupt:
        ranks.fail(SIGNALLED + 2, "interrupted in a step: nothing more was saved", "interrupted in a step")
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)):
            # Who is gone comes with its last word, or with the heartbeats that are missed.
            time.sleep(_heartbeat(ranks.patience) + 2 * _HEARD)
        traceback.print_exc()
        ranks.fail(FOUND, ranks.lost(f"process {ranks.world.rank} failed"), first_line(error))
    return FOUND


def _several(spread: SpreadArgs) -> bool:
    """Whether the run has several processes, by its options or by a scheduler's variables.

    Raises:
        ValueError: options that do not fit each other.
    """
    address, size, rank = spread.coordinator_address, spread.num_processes, spread.process_id
    scheduled = any(os.environ.get(name, "1") != "1" for name in _SCHEDULERS)
    if address is None:
        for name, value in (("num-processes", size), ("process-id", rank)):
            if value is not None:
                raise ValueError(f"train: {name} is {value} without --coordinator-address, wanted HOST:PORT there")
        return scheduled
    if not re.fullmatch(r"\S+:\d{1,5}", address):
        raise ValueError(f"train: coordinator-address is {address!r}, wanted HOST:PORT")
    if not scheduled and (size is None or rank is None):
        raise ValueError("train: no scheduler counts the processes, wanted --num-processes and --process-id")
    if size is not None and rank is not None and not 0 <= rank < size:
        raise ValueError(f"train: process-id is {rank}, wanted 0 to {size - 1}")
    return True


def _connect(spread: SpreadArgs) -> None:
    """Join the other processes.

    Raises:
        ValueError: jax cannot; where nobody answers it aborts instead.
    """
    given = (spread.coordinator_address, spread.num_processes, spread.process_id)
    if spread.coordinator_address and spread.process_id == 0:
        # jaxlib does not survive a port that is taken.
        port = int(spread.coordinator_address.rpartition(":")[2])
        both = socket.has_dualstack_ipv6()
        try:
            socket.create_server(
                ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
            ).close()
        except (OSError, OverflowError) as error:
            why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
            raise ValueError(
                f"train: coordinator-address is {spread.coordinator_address} ({why}), wanted a free port there"
            ) from None
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM, which a run saves and ends for.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *given,
            cluster_detection_method=None if None in given else "deactivate",
            initialization_timeout=int(spread.timeout),
            heartbeat_timeout_seconds=_heartbeat(spread.timeout),
            shutdown_timeout_seconds=_heartbeat(spread.timeout),
        )
    except (RuntimeError, ValueError, TypeError) as error:
        why = first_line(error)
        raise ValueError(f"train: jax.distributed cannot start ({why}), wanted processes to join") from None


def _heartbeat(patience: float) -> int:
    # A process that is gone must be found out before the others lose their patience with it.
    return max(1, int(min(_HEARTBEAT, patience / 4)))


def _of_abort(text: str, spread: SpreadArgs, here: list[JaxRanks]) -> tuple[str, int] | None:
    """The line and exit code for what jax.distributed wrote before it aborted; None for any other abort."""
    if "JAX distributed service" not in text:
        return None
    if not here:
        where = spread.coordinator_address or "the scheduler's address"
        met = f"where not all {spread.num_processes or ''} processes met within {spread.timeout:g} s"
        line = f"train: coordinator-address is {where}, {met}, wanted process 0 there and each of the others once"
        return f"gradlab: {' '.join(line.split())}", UNUSABLE
    named = re.search(r"heartbeats\):\n(.*?)\nThe tasks", text, re.S)
    if named:
        numbers = re.findall(r"(\d+)\s*$", named[1], re.M)
        who = f"process {', '.join(numbers)} is gone: killed, or out of memory"
    elif twice := re.search(r"(\d+) unexpectedly tried to connect", text):
        who = f"process {twice[1]} is there twice, or was started again"
    elif "Failed to send RPC" in text or "Socket closed" in text:
        who = "process 0 is gone: killed, or out of memory"
    else:
        status = re.search(r"absl::Status: (.*)", text)
        who = status[1] if status else "jax.distributed gave up"
    return here[0].given_up(who), FOUND
