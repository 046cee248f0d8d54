"""Benchmark groups of one side, dtype and mode for `make gpu`: a file that holds each group before the next one starts.

A later run goes on from what the file holds, where the package is the same and the machine too. It needs NumPy and the
side's framework, and no more.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gradlab.base.exit_codes import FOUND, INTERRUPTED, OK
from gradlab.kernels.spec import specs
from gradlab.profiling.bench.file import read_json, write
from gradlab.profiling.bench.row import BOTH, FORWARD, GRADLAB, NATIVE, Group
from gradlab.profiling.bench.words import policy, problem_line
from gradlab.profiling.bench.worker import TimingJob, work
from gradlab.profiling.native.native import native

# Seconds of timing a group: medians settle far below a second where a call takes a millisecond.
BUDGET = 0.15
PASSES = (FORWARD, BOTH)
# What a row depends on.
SAME = ("gpu", "source")


def main(words: list[str] | None = None) -> int:
    """0 when all groups are there and right, 1 when one is wrong or failed, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m gradlab.profiling.gpu.rows", description=__doc__)
    for name in ("side", "dtype", "mode", "gpu", "source"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--ops", nargs="*", help="in this order; every op when not given")
    parser.add_argument("--tiny", action="store_true", help="each op's first checked case alone: to try the steps")
    parser.add_argument("--largest", action="store_true", help="each op's largest case alone")
    args = parser.parse_args(words)
    try:
        groups = rows(
            args.file,
            {"gpu": args.gpu, "source": args.source},
            args.side,
            args.dtype,
            args.mode,
            args.ops or list(specs()),
            args.largest,
            args.tiny,
        )
    except KeyboardInterrupt:
        return INTERRUPTED
    return FOUND if any(problems(groups)) else OK


def rows(
    file: Path,
    about: dict[str, str],
    side: str,
    dtype: str,
    mode: str,
    ops: Iterable[str],
    largest: bool = False,
    tiny: bool = False,
) -> list[Group]:
    """Measure what the file has not, and write it after each group.

    Args:
        about: what the groups hang on, by the words of SAME; groups of something else are measured anew.
        largest, tiny: each op's largest case alone, or its first checked one.
    """
    groups = finished(file, about)
    done = frozenset((g.op, g.case, g.direction) for g in groups)
    head = {"machine": {"gpu": about["gpu"]}, **about, "dtype": dtype, "precision": policy(dtype)}

    def on_message(message: tuple[Any, ...]) -> None:
        match message:
            case ("groups", total):
                print(f"{total} groups to measure, {len(groups)} are there", flush=True)
            case ("group", group):
                groups.append(group)
                write(groups, head | {"complete": False}, {"json": file})
                print(f"{group.op}, {group.case}, {group.direction}: {_shown(group)}", flush=True)

    args = TimingJob(
        tuple(_provable(side, ops)),
        side,
        dtype,
        (mode,),
        PASSES,
        BUDGET,
        largest=largest,
        tiny=tiny,
        fresh=False,
        done=done,
    )
    with tempfile.TemporaryDirectory(prefix="gradlab-rows-", ignore_cleanup_errors=True) as folder:
        work(on_message, args, folder)
    write(groups, head | {"complete": True}, {"json": file})
    for line in problems(groups):
        print(line, flush=True)
    return groups


def _provable(side: str, ops: Iterable[str]) -> Iterator[str]:
    """The ops whose native can run here, the reference for the others."""
    for op in ops:
        needs = native(side, op).needs
        if needs and importlib.util.find_spec(needs) is None:
            print(f"{op} is not timed: its native on {side} needs {needs}, which is not installed", flush=True)
        else:
            yield op


def finished(file: Path, about: dict[str, str]) -> list[Group]:
    """The groups of an earlier run of the same package on the same machine."""
    try:
        groups, head = read_json(file)
    except ValueError:
        return []
    return groups if all(head.get(key) == about[key] for key in SAME) else []


def problems(groups: Iterable[Group]) -> list[str]:
    """A line for each hand-written or native member that is wrong or failed; a failing peer is no failure."""
    return [
        problem_line(g, m) for g in groups for m in g.members if m.problem and m.implementation in (GRADLAB, NATIVE)
    ]


def _shown(group: Group) -> str:
    def time(implementation: str) -> str:
        member = next(m for m in group.members if m.implementation == implementation)
        return member.problem or f"{member.time.median * 1e6:.1f} µs"

    return f"{time(GRADLAB)} gradlab, {time(NATIVE)} native"


if __name__ == "__main__":
    sys.exit(main())
