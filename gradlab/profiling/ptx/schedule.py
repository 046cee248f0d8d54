"""The order in which threads run: which lanes are where, what waits for what, and which of them go next.

Lanes that are at one instruction run together. In the order "together" those furthest behind go first, so that the
branches of a warp meet again; in "first" and "last" the first or the last warp of every block goes as far as it can
before any other moves, which shows what no barrier separates.
"""

from typing import Any

import numpy as np

from gradlab.profiling.ptx.block_barriers import BlockBarriers
from gradlab.profiling.ptx.blocks import LANES, Lanes
from gradlab.profiling.ptx.instructions import step
from gradlab.profiling.ptx.machine import Machine, Step
from gradlab.profiling.ptx.numbers import Array
from gradlab.profiling.ptx.parse import PTXError
from gradlab.profiling.ptx.program import Instruction

ORDERS = ("together", "first", "last")
# What a step is: a plain one, a branch, an end, one that a warp does together, a barrier of the block, a wait.
PLAIN, BRANCH, END, WARP, BARRIER, WAIT = range(6)
_WARP = ("shfl", "vote", "redux", "match", "elect", "mma", "ldmatrix", "stmatrix", "wgmma")
# So many turns of others, and whoever could run has one too: a lock's holder may be among them.
_PATIENCE = 64


class Budget(Exception):
    """More instructions than were allowed.

    Attributes:
        expected: how many all blocks may take, by those that ran.
    """

    def __init__(self, expected: int = 0) -> None:
        super().__init__(expected)
        self.expected = expected


class Scheduler:
    """Runs the blocks of a machine."""

    def __init__(self, machine: Machine, order: str, budget: int) -> None:
        self.m, self.order, self.budget = machine, order, budget
        self.code = machine.code.instructions
        self.labels = machine.code.labels
        self.kinds = [_kind(i) for i in self.code]
        self.kind_at = np.asarray(self.kinds)
        self.grouped = np.asarray([i.root == "wgmma" for i in self.code])
        self.steps: list[Step | None] = [None] * len(self.code)
        self.guards: list[Any] = [None] * len(self.code)
        self.targets: list[int] = [0] * len(self.code)
        for i in self.code:
            self._prepare(i)
        self.at = machine.at
        self.alive = np.zeros(machine.lanes, bool)
        # What a lane waits for: a barrier of its block, or, stalled, something else.
        self.barriers = BlockBarriers(machine)
        self.waits, self.stalled = self.barriers.waits, machine.stalled
        self.spent = 0
        # Where threads may wait for others in a loop: the last turn of each lane.
        self.spins = any(i.root == "atom" or i.has("acquire", "volatile", "relaxed") for i in self.code)
        self.turn, self.had = 0, np.zeros(machine.lanes, np.int64)

    def _prepare(self, i: Instruction) -> None:
        kind = self.kinds[i.index]
        if i.guard is not None:
            read, negated = self.m.source(i.guard[0], "pred"), i.guard[1]
            self.guards[i.index] = (lambda lanes: ~read(lanes)) if negated else read
        if kind == BRANCH:
            label = i.operands[-1]
            if label not in self.labels:
                raise PTXError(f"emulate: instruction is {i}, wanted a label of the kernel")
            self.targets[i.index] = self.labels[label]
        elif kind not in (END, BARRIER):
            self.steps[i.index] = step(i, self.m)

    def run(self, working: Array) -> None:
        """Run the lanes that have work to their end."""
        self.at[:], self.alive[:], self.waits[:], self.stalled[:] = 0, working, -1, False
        self.turn, self.had[:] = 0, 0
        while self.alive.any():
            ready = self.alive & (self.waits < 0) & ~self.stalled & self._together()
            if not ready.any():
                if self._unstall():
                    continue
                self._deadlock()
                return
            mine = self._mine(ready)
            first = int(self.at[mine].min())
            if self.spins:
                self.turn += 1
                waiting = int(np.argmin(np.where(ready, self.had, self.turn)))
                if self.turn - self.had[waiting] > _PATIENCE:
                    mine, first = np.flatnonzero(ready), int(self.at[waiting])
            lanes = mine[self.at[mine] == first]
            self.had[lanes] = self.turn
            others = self.at[self.alive & (self.waits < 0) & ~self.stalled & (self.at > first)]
            self._advance(first, lanes, int(others.min()) if others.size else -1)
        for part in self.m.parts.values():
            if hasattr(part, "finish"):
                part.finish()

    def _mine(self, ready: Array) -> Array:
        """Indices of the lanes that may go next."""
        if self.order == "together":
            return np.flatnonzero(ready)
        by_warp = ready.reshape(self.m.warps, -1)
        warps = np.flatnonzero(by_warp.any(1))
        warp = warps[0] if self.order == "first" else warps[-1]
        lanes = np.flatnonzero(by_warp[warp]) + warp * by_warp.shape[1]
        first = int(self.at[lanes].min())
        if first < len(self.code) and self.code[first].root == "wgmma":
            # The other three warps of the group do it with this one.
            group = np.arange(by_warp.size) // by_warp.shape[1] // 4 == warp // 4
            return np.flatnonzero(ready & group & (self.at == first))
        return lanes

    def _together(self) -> Array:
        """Lanes that are at nothing that the rest of their warp, or of four warps, must be at too."""
        kinds = self.kind_at[np.minimum(self.at, len(self.code) - 1)]
        if not (kinds[self.alive] == WARP).any():
            return np.ones(self.m.lanes, bool)
        here = np.where(self.alive, self.at, -1).reshape(-1, LANES)
        most = here.max(1)
        same = ((here == most[:, None]) | (here < 0)).all(1)
        groups = self.grouped[np.clip(most, 0, len(self.code) - 1)]
        if groups.any():
            # Four warps of a block do a wgmma together; they lie a warp's lanes of all blocks apart.
            by_group = np.where(same, most, -2).reshape(-1, min(4, self.m.warps), self.m.blocks)
            agree = (by_group == by_group[:, :1]).all(1, keepdims=True)
            same &= np.broadcast_to(agree, by_group.shape).reshape(-1) | ~groups
        return np.repeat(same, LANES) | (kinds != WARP)

    def _advance(self, pc: int, indices: Array, limit: int) -> None:
        """Run lanes from an instruction on until they part, meet others or wait."""
        lanes = _as_slice(indices)
        threads, warps = indices.size, _warps(indices)
        everyone = threads == np.count_nonzero(self.alive)
        # Whole warps need not look whether the rest of them is there too; a wgmma is of four.
        whole = everyone or _are_whole(indices)
        start = pc
        while True:
            if pc >= len(self.code):
                self._end(lanes)
                self._count(start, pc - 1, warps, threads)
                return
            kind = self.kinds[pc]
            alone = kind >= WARP and not everyone and (kind > WARP or not whole or self.grouped[pc])
            if pc != start and (pc == limit or alone):
                self.at[lanes] = pc
                self._count(start, pc - 1, warps, threads)
                return
            i, guard = self.code[pc], self.guards[pc]
            chosen: Lanes | None = lanes
            if guard is not None:
                true = np.broadcast_to(guard(lanes), threads)
                number = int(np.count_nonzero(true))
                if number < threads:
                    chosen = self.m.where(lanes)[true] if number else None
                    self.m.counts.skipped(pc, threads - number)
            if kind in (PLAIN, WARP):
                if chosen is not None:
                    self.steps[pc](chosen)  # type: ignore[misc]
                pc += 1
                continue
            self._count(start, pc - (kind == WAIT), warps, threads)
            if kind == BRANCH:
                target = self.targets[pc]
                if chosen is None or chosen is not lanes:
                    self._part(pc, lanes, chosen, target)
                    if chosen is None:
                        pc = start = pc + 1
                        continue
                    return
                if target <= pc or not everyone:
                    self.at[lanes] = target
                    return
                pc = start = target
            elif kind == END:
                self.at[lanes] = pc + 1
                if chosen is not None:
                    self._end(chosen)
                return
            elif kind == BARRIER:
                self.at[lanes] = pc + 1
                if chosen is not None:
                    self.barriers.come(i, self.m.where(chosen), self.alive)
                return
            else:
                self._wait(pc, lanes, chosen)
                gone = self.m.where(lanes)[~self.stalled[lanes]]
                if gone.size:
                    self._count(pc, pc, _warps(gone), gone.size)
                return
            self._spend(0)

    def _part(self, pc: int, lanes: Lanes, taken: Lanes | None, target: int) -> None:
        """Send lanes on, those that take a branch to its target."""
        self.at[lanes] = pc + 1
        if taken is not None:
            self.at[taken] = target
            gone = self.m.where(taken)
            stay = np.setdiff1d(self.m.where(lanes), gone, assume_unique=True)
            self.m.counts.divergent[pc] += np.intersect1d(gone // LANES, stay // LANES).size

    def _end(self, lanes: Lanes) -> None:
        """Lanes are at their end; a barrier that waited for them goes by those that are left."""
        self.alive[lanes] = False
        if (self.waits >= 0).any():
            self.barriers.leave(self.alive)

    def _count(self, first: int, last: int, warps: int, threads: int) -> None:
        if last >= first:
            self.m.counts.run(first, last, warps, threads)
            self._spend((last - first + 1) * warps)

    def _spend(self, instructions: int) -> None:
        self.spent += instructions
        if self.spent > self.budget:
            raise Budget

    def _wait(self, pc: int, lanes: Lanes, chosen: Lanes | None) -> None:
        """Lanes that must wait stay where they are, and stand still; waiting costs no instructions."""
        self.at[lanes] = pc + 1
        if chosen is not None:
            self.steps[pc](chosen)  # type: ignore[misc]
            self.at[lanes] = np.where(self.stalled[lanes], pc, pc + 1)

    def _unstall(self) -> bool:
        """Nothing can go on: let land what is on its way."""
        return any(part.unstall() for part in self.m.parts.values() if hasattr(part, "unstall"))

    def _deadlock(self) -> None:
        """No lane can go on: say where they are, and what they wait for."""
        for part in self.m.parts.values():
            if hasattr(part, "explain"):
                part.explain()
        self.barriers.explain(self.alive)


def _kind(i: Instruction) -> int:
    if i.root in ("bra", "brx"):
        return BRANCH
    if i.root in ("ret", "exit", "trap"):
        return END
    if i.root in ("bar", "barrier") and not (i.has("warp") or (i.has("cluster") and i.has("arrive"))):
        return BARRIER
    if i.root == "mbarrier" and i.has("try_wait", "test_wait"):
        return WAIT
    return WARP if i.root in _WARP else PLAIN


def _as_slice(indices: Array) -> Lanes:
    first, last = int(indices[0]), int(indices[-1])
    return slice(first, last + 1) if last - first + 1 == indices.size else indices


def _are_whole(indices: Array) -> bool:
    """Whether sorted lanes are all of each warp that they are of."""
    if indices.size % LANES:
        return False
    first, last = indices[::LANES], indices[LANES - 1 :: LANES]
    return bool((first % LANES == 0).all() and (last - first == LANES - 1).all())


def _warps(indices: Array) -> int:
    return int(np.count_nonzero(np.diff(indices // LANES))) + 1
